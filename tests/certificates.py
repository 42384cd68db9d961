"""Certificates for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc


class Authority:
    """Signs certificates, with the openssl command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run("req", "-x509", *self._KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")

    _KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

    @property
    def path(self) -> str:
        return str(self._folder / "ca.pem")

    @property
    def pem(self) -> bytes:
        return Path(self.path).read_bytes()

    def sign(self, name: str, *alternatives: str) -> tuple[str, str]:
        """The files of a certificate and its key."""
        (self._folder / "extensions").write_text(f"subjectAltName={','.join(alternatives)}\n" if alternatives else "")
        self._run("req", *self._KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        self._run(*signing, "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem")
        return str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key")

    def client(
        self, name: str | None = None, *alternatives: str, trusting: Authority | None = None
    ) -> grpc.ChannelCredentials:
        """Of a client that trusts this or that authority and, with a name, shows a certificate of this one."""
        trusted = (trusting or self).pem
        if name is None:
            return grpc.ssl_channel_credentials(trusted)
        cert, key = self.sign(name, *alternatives)
        return grpc.ssl_channel_credentials(trusted, Path(key).read_bytes(), Path(cert).read_bytes())

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
