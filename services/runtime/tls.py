"""The server's certificate, and whose certificates it accepts; new files are used from the next handshake on."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.runtime.reload import BadFile, Reloaded


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca` a client must show a certificate that it signed (mTLS)."""

    cert: str
    key: str
    client_ca: str | None

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.cert, self.key, self.client_ca) if path is not None]


def load(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Checked here, since grpc would only fail each handshake later. Raises BadFile."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The password: an encrypted key must fail, not ask on the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
        pair = Path(files.key).read_bytes(), Path(files.cert).read_bytes()
        roots = Path(files.client_ca).read_bytes() if files.client_ca is not None else None
    except (OSError, ValueError) as error:
        raise BadFile(f"{', '.join(files.paths)}: no certificate with its key ({error})") from error
    return grpc.ssl_server_certificate_configuration([pair], roots)


def credentials(files: TlsFiles, certificate: Reloaded[grpc.ServerCertificateConfiguration]) -> grpc.ServerCredentials:
    """For a port of the server; asks `certificate` for its current value at every handshake."""
    return grpc.dynamic_ssl_server_credentials(
        certificate.current, lambda: certificate.current, require_client_authentication=files.client_ca is not None
    )
