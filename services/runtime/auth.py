"""Who calls, and what they may do: tokens and certificates, roles, and the role that each method needs.

`python -m services.runtime.auth new-token CALLER ROLE…` makes a token and the line for the file.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from services.domain.model import is_id
from services.runtime.reload import BadFile
from services.runtime.rpc_errors import Refusal

TOKEN_BYTES = 32
"""Of randomness: nothing to guess, so a plain fast hash keeps it as well as a slow one (docs/decisions/0006)."""
TOKEN_PREFIX = "fc_"
"""So that scanners of code and logs can find a token that was spilled."""
TOKEN_LENGTH_MAX = 256
FILE_BYTES_MAX = 4 * 1024 * 1024
_HASH = re.compile(r"[0-9a-f]{64}")
_CERTIFICATE_KINDS = ("uri", "dns", "cn")


class Role(Enum):
    """What a caller may do. None includes another: a caller has those that its line names."""

    ISSUE = "issue"
    READ = "read"
    OPERATE = "operate"


METHODS: Mapping[str, Role | None] = {
    "/coupon.v1.IssuerService/IssueCoupon": Role.ISSUE,
    "/coupon.v1.IssuerService/BatchIssueCoupons": Role.ISSUE,
    "/coupon.v1.IssuerService/GetIssuance": Role.READ,
    "/coupon.v1.IssuerService/ListIssuances": Role.READ,
    "/coupon.v1.IssuerService/WatchIssuance": Role.READ,
    "/coupon.v1.CouponService/CreateCoupon": Role.OPERATE,
    "/coupon.v1.CouponService/GetCoupon": Role.READ,
    "/coupon.v1.CouponService/ListCoupons": Role.READ,
    "/coupon.v1.CouponService/UpdateCoupon": Role.OPERATE,
    "/coupon.v1.CouponService/AdjustStock": Role.OPERATE,
    "/coupon.v1.CouponService/PauseCoupon": Role.OPERATE,
    "/coupon.v1.CouponService/ResumeCoupon": Role.OPERATE,
    "/coupon.v1.CouponService/CloseCoupon": Role.OPERATE,
    "/coupon.v1.DeadLetterService/GetDeadLetter": Role.READ,
    "/coupon.v1.DeadLetterService/ListDeadLetters": Role.READ,
    "/coupon.v1.DeadLetterService/RetryDeadLetter": Role.OPERATE,
    "/coupon.v1.DeadLetterService/DiscardDeadLetter": Role.OPERATE,
    "/coupon.v1.ReplayService/CreateReplayJob": Role.OPERATE,
    "/coupon.v1.ReplayService/GetReplayJob": Role.READ,
    "/coupon.v1.ReplayService/ListReplayJobs": Role.READ,
    "/coupon.v1.ReplayService/CancelReplayJob": Role.OPERATE,
    "/coupon.v1.ReplayService/WatchReplayJob": Role.READ,
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/List": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": None,
}
"""Method → the role it needs; None: any caller that is known. A method that is not here is refused to everyone."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller, as the file names it."""

    name: str
    roles: frozenset[Role]


LOCAL = Identity("local", frozenset(Role))
"""Everyone, where authentication is off."""

_NOBODY = Identity("", frozenset())
_calling: ContextVar[Identity] = ContextVar("calling", default=_NOBODY)


def caller_name() -> str:
    """Who makes the call that is being answered, for the records of what was done; empty if there is none."""
    return _calling.get().name


def set_caller(identity: Identity) -> None:
    """For the rest of this call; each call has a task, and so a context, of its own."""
    _calling.set(identity)


def need_role(method: str, identity: Identity) -> None:
    """Raises Refusal (ROLE_MISSING) if the caller has not got the role that the method needs."""
    if method not in METHODS:
        raise Refusal("ROLE_MISSING", f"no role is known that may call {method}")
    role = METHODS[method]
    if role is not None and role not in identity.roles:
        message = f"caller {identity.name} has not got the role {role.value}"
        raise Refusal("ROLE_MISSING", message, metadata={"role": role.value})


class Callers:
    """All that a file of callers says. Tokens are known by their hashes only."""

    def __init__(self, by_hash: Mapping[bytes, Identity], by_certificate: Mapping[str, Identity]) -> None:
        self._by_hash = {digest: (digest, identity) for digest, identity in by_hash.items()}
        self._by_certificate = by_certificate

    def __len__(self) -> int:
        return len(self._by_hash) + len(self._by_certificate)

    def identify(self, context: Any) -> Identity:
        """Whose call it is: by its token if it brings one, else by the client's certificate.

        Raises Refusal (UNAUTHENTICATED). A bad token is not made good by a certificate.
        """
        brought = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
        if brought:
            identity = self._of_token(brought[0]) if len(brought) == 1 else None
        else:
            identity = self._of_certificate(context) if self._by_certificate else None
        if identity is None:
            what = "these credentials are not known" if brought else "no credentials that are known"
            raise Refusal("UNAUTHENTICATED", f"{what}: send authorization: Bearer <token>")
        return identity

    def _of_token(self, header: str | bytes) -> Identity | None:
        if not isinstance(header, str) or len(header) > TOKEN_LENGTH_MAX:
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hash_of(token)
        found = self._by_hash.get(digest)
        # Timing the look-up tells of hashes, for which no token can be made; equality is in constant time all the same.
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None

    def _of_certificate(self, context: Any) -> Identity | None:
        shown = context.auth_context()
        for kind, property_name in zip(_CERTIFICATE_KINDS, ("peer_uri", "peer_dns", "x509_common_name"), strict=True):
            for value in shown.get(property_name, ()):
                identity = self._by_certificate.get(f"{kind}:{value.decode(errors='replace')}")
                if identity is not None:
                    return identity
        return None


def load_callers(path: str) -> Callers:
    """Raises BadFile with every fault."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise BadFile(f"larger than {FILE_BYTES_MAX} bytes")
        return parse_callers(raw.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: can't be read ({error})") from error
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from error


def parse_callers(text: str) -> Callers:
    """Lines of caller, roles and credential; blank lines and those that begin with # say nothing. Raises BadFile."""
    by_hash: dict[bytes, Identity] = {}
    by_certificate: dict[str, Identity] = {}
    faults: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split(None, 2)
        if len(parts) != 3:
            faults.append(f"line {number}: must be <caller> <role>[,<role>…] <credential>")
            continue
        name, listed, credential = parts[0], parts[1].split(","), parts[2].strip()
        faults += [f"line {number}: {fault}" for fault in _faults(name, listed)]
        roles = frozenset(role for role in Role if role.value in listed)
        kind, _, value = credential.partition(":")
        if kind == "sha256" and _HASH.fullmatch(value):
            if bytes.fromhex(value) in by_hash:
                faults.append(f"line {number}: the token of an earlier line")
            by_hash[bytes.fromhex(value)] = Identity(name, roles)
        elif kind in _CERTIFICATE_KINDS and value:
            if credential in by_certificate:
                faults.append(f"line {number}: the certificate of an earlier line")
            by_certificate[credential] = Identity(name, roles)
        else:
            # Not shown: it may be a token that was pasted in place of its hash.
            faults.append(f"line {number}: the credential must be sha256:<64 hex digits>, cn:…, dns:… or uri:…")
    if not faults and not by_hash and not by_certificate:
        faults.append("no caller is named")
    if faults:
        raise BadFile("; ".join(faults))
    return Callers(by_hash, by_certificate)


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def hash_of(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def line_of(caller: str, roles: Sequence[str], token: str) -> str:
    """The line of the file. Raises BadFile."""
    faults = _faults(caller, roles)
    if faults:
        raise BadFile("; ".join(faults))
    return f"{caller} {','.join(roles)} sha256:{hash_of(token).hex()}"


def _faults(caller: str, roles: Sequence[str]) -> list[str]:
    faults = []
    if not is_id(caller) or caller == LOCAL.name:
        faults.append("a caller must be 1 to 128 of A-Z a-z 0-9 . _ ~ @ : + -, and not " + LOCAL.name)
    known = [role.value for role in Role]
    if not roles or any(role not in known for role in roles):
        faults.append(f"roles must be of {', '.join(known)}")
    return faults


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m services.runtime.auth", description="Tokens of callers.")
    commands = parser.add_subparsers(required=True, metavar="command")
    new = commands.add_parser("new-token", help="make a token: it is shown once, and the file keeps its hash")
    new.add_argument("caller", metavar="CALLER")
    new.add_argument("roles", metavar="ROLE", nargs="+", help=", ".join(role.value for role in Role))
    asked = parser.parse_args(arguments)
    token = new_token()
    try:
        line = line_of(asked.caller, asked.roles, token)
    except BadFile as error:
        sys.exit(str(error))
    print("the token, shown this once, and the line for the file that FIRSTCOME_TOKENS names:", file=sys.stderr)
    print(token)
    print(line)


if __name__ == "__main__":
    main()
