"""Callers, roles and settings of access, without a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from coupon.v1 import coupon_pb2, dead_letter_pb2, issuer_pb2, replay_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.runtime import auth
from services.runtime.auth import METHODS, Identity, Role, hash_of, line_of, load_callers, need_role, parse_callers
from services.runtime.config import Access, ConfigError, dlq_config, issuer_config
from services.runtime.reload import BadFile, Reloaded
from services.runtime.rpc_errors import Refusal
from stack.locations import REPOSITORY

TOKEN = "fc_" + "x" * 43
CALLERS = line_of("shop", ["issue", "read"], TOKEN)
ENGINES = {"FIRSTCOME_KAFKA_BOOTSTRAP": "k:9092", "FIRSTCOME_POSTGRES_DSN": "postgresql://u@h/d"}


class Call:
    """What a call brings."""

    def __init__(self, *headers: str | bytes, certificate: Mapping[str, Sequence[bytes]] | None = None) -> None:
        self._headers, self._certificate = headers, certificate or {}

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return (("user-agent", "test"), *(("authorization", header) for header in self._headers))

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return self._certificate


def unknown(text: str, call: Call) -> bool:
    with pytest.raises(Refusal) as refused:
        parse_callers(text).identify(call)
    return refused.value.reason == "UNAUTHENTICATED"


def test_a_token_is_its_caller_with_the_roles_of_its_line() -> None:
    text = f"# who\n\n{CALLERS}\nops operate uri:spiffe://x/ops\n"
    expected = Identity("shop", frozenset({Role.ISSUE, Role.READ}))
    assert parse_callers(text).identify(Call(f"Bearer {TOKEN}")) == expected
    assert parse_callers(text).identify(Call(f"bearer {TOKEN}")) == expected


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        (TOKEN,),
        (f"Basic {TOKEN}",),
        (f"Bearer {TOKEN}x",),
        (f"Bearer {TOKEN[:-1]}",),
        (f"Bearer  {TOKEN}",),
        (f"Bearer {hash_of(TOKEN).hex()}",),
        (f"Bearer {TOKEN}", f"Bearer {TOKEN}"),
        ("Bearer " + "x" * 100_000,),
        (f"Bearer {TOKEN}".encode(),),
        ("Bearer \ud800é",),
    ],
)
def test_anything_but_the_token_is_refused(headers: Sequence[str | bytes]) -> None:
    assert unknown(CALLERS, Call(*headers))


def test_a_certificate_is_its_caller_by_uri_then_dns_then_name() -> None:
    text = "a issue uri:spiffe://x/a\nb read dns:b.example\nc operate cn:The C Service\n"
    shown = {"peer_uri": [b"spiffe://x/a"], "peer_dns": [b"b.example"], "x509_common_name": [b"The C Service"]}
    callers = parse_callers(text)
    names = []
    for property_name in list(shown):
        names.append(callers.identify(Call(certificate=shown)).name)
        del shown[property_name]
    assert names == ["a", "b", "c"]
    assert unknown(text, Call(certificate={"peer_dns": [b"The C Service"], "x509_common_name": [b"b.example"]}))


def test_a_bad_token_is_not_made_good_by_a_certificate() -> None:
    text = "c operate cn:c\n"
    assert unknown(text, Call("Bearer wrong", certificate={"x509_common_name": [b"c"]}))


def test_every_fault_of_the_file_is_named_and_no_credential_is_shown() -> None:
    text = f"shop\nshop issue {TOKEN}\nlocal read cn:x\nshop admin cn:y\n{CALLERS}\n{CALLERS}\n"
    with pytest.raises(BadFile) as refused:
        parse_callers(text)
    faults = str(refused.value)
    assert [f"line {n}:" in faults for n in range(1, 7)] == [True, True, True, True, False, True]
    assert TOKEN not in faults


@pytest.mark.parametrize("text", ["", "# nobody\n", CALLERS[:-1], CALLERS[: CALLERS.rindex(" ")]])
def test_a_file_without_callers_or_cut_short_is_refused(text: str) -> None:
    with pytest.raises(BadFile):
        parse_callers(text)


def test_every_method_of_the_contract_has_its_role() -> None:
    files: Sequence[Any] = (coupon_pb2, issuer_pb2, dead_letter_pb2, replay_pb2, health_pb2, reflection_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert methods <= set(METHODS)
    reading = ("Get", "List", "Watch")
    for method in methods:
        if method.startswith("/coupon.v1."):
            name = method.rpartition("/")[2]
            assert (METHODS[method] is Role.READ) == name.startswith(reading), method


def test_a_role_is_needed_and_none_includes_another() -> None:
    for method, needed in METHODS.items():
        for role in Role:
            if needed in (None, role):
                need_role(method, Identity("x", frozenset({role})))
            else:
                with pytest.raises(Refusal) as refused:
                    need_role(method, Identity("x", frozenset({role})))
                assert refused.value.reason == "ROLE_MISSING"
                assert refused.value.metadata == {"role": needed.value if needed else ""}


def test_a_method_that_is_not_listed_is_refused_to_everyone() -> None:
    with pytest.raises(Refusal) as refused:
        need_role("/coupon.v1.IssuerService/DropEverything", auth.LOCAL)
    assert refused.value.reason == "ROLE_MISSING"


def test_the_command_makes_a_token_and_a_line_that_fit() -> None:
    command = [sys.executable, "-m", "services.runtime.auth", "new-token", "shop", "issue", "read"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    token, line = done.stdout.splitlines()
    assert len(token) >= 43
    assert token not in line
    assert token not in done.stderr
    identity = parse_callers(line).identify(Call(f"Bearer {token}"))
    assert identity == Identity("shop", frozenset({Role.ISSUE, Role.READ}))
    assert auth.new_token() != auth.new_token()


def test_the_command_refuses_a_role_that_is_none() -> None:
    with pytest.raises(SystemExit, match="roles must be of issue, read, operate"):
        auth.main(["new-token", "shop", "admin"])


async def test_a_changed_file_is_loaded_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "callers"
    file.write_text(CALLERS)
    loads = 0

    def load() -> auth.Callers:
        nonlocal loads
        loads += 1
        return load_callers(str(file))

    callers = Reloaded("callers", [str(file)], load)
    first = callers.current
    await callers.poll()
    assert (callers.current, loads) == (first, 1)
    file.write_text("nonsense")
    for _ in range(3):
        await callers.poll()
    assert (callers.current, loads) == (first, 2)  # looked at once
    file.unlink()
    await callers.poll()
    assert callers.current is first
    replacement = tmp_path / "new"
    replacement.write_text("ops operate cn:ops")
    replacement.rename(file)
    await callers.poll()
    assert callers.current.identify(Call(certificate={"x509_common_name": [b"ops"]})).name == "ops"


async def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text("one")
    writing = ""

    def load() -> str:
        text = file.read_text()
        if writing:
            file.write_text(writing)
        return text

    value = Reloaded("value", [str(file)], load)
    file.write_text("tw")
    writing = "two"
    await value.poll()
    assert value.current == "one"
    writing = ""
    await value.poll()
    assert value.current == "two"


def faults(read: Any = issuer_config, **settings: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read({**ENGINES, **settings})
    return str(refused.value)


def test_authentication_is_required_unless_it_is_turned_off() -> None:
    for read in (issuer_config, dlq_config):
        assert "FIRSTCOME_TOKENS is not set" in faults(read)
        assert read({**ENGINES, "FIRSTCOME_AUTH": "off"}).access == Access()
    assert "must be one of required, off" in faults(FIRSTCOME_AUTH="no")


def test_without_authentication_loopback_only() -> None:
    for listen in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1"):
        for more in ({}, {"FIRSTCOME_TLS": "off"}):
            said = faults(FIRSTCOME_AUTH="off", FIRSTCOME_LISTEN=listen, **more)
            assert "with FIRSTCOME_AUTH=off only a loopback address may be served" in said
    for listen in ("127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1"):
        issuer_config({**ENGINES, "FIRSTCOME_AUTH": "off", "FIRSTCOME_LISTEN": listen})


def test_plain_text_beyond_loopback_only_when_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "callers"
    file.write_text(CALLERS)
    settings = {**ENGINES, "FIRSTCOME_TOKENS": str(file), "FIRSTCOME_LISTEN": "0.0.0.0:1"}
    assert "beyond loopback FIRSTCOME_TLS_CERT and FIRSTCOME_TLS_KEY must be set" in faults(**settings)
    assert issuer_config({**settings, "FIRSTCOME_TLS": "off"}).access == Access(str(file))


def test_all_faults_of_access_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "callers"
    file.write_text("nonsense\n")
    said = faults(
        FIRSTCOME_TOKENS=str(file),
        FIRSTCOME_TLS_CERT="/nowhere",
        FIRSTCOME_TLS="off",
        FIRSTCOME_RATE_PER_S="-1",
        FIRSTCOME_RATE_BURST="0",
        FIRSTCOME_WAITERS_MAX="x",
    )
    for name in ("_TOKENS: ", "line 1", "_TLS_KEY must be set", "_RATE_PER_S", "_RATE_BURST", "_WAITERS_MAX"):
        assert name in said
    said = faults(FIRSTCOME_AUTH="off", FIRSTCOME_TLS_CERT="/nowhere", FIRSTCOME_TLS_KEY="/no", FIRSTCOME_TLS="off")
    assert "no certificate with its key" in said
    assert "FIRSTCOME_TLS is off and FIRSTCOME_TLS_CERT is set" in said
    assert "FIRSTCOME_TLS_CLIENT_CA needs" in faults(FIRSTCOME_AUTH="off", FIRSTCOME_TLS_CLIENT_CA="/ca")


def test_a_file_that_can_not_be_read_is_a_fault(tmp_path: Path) -> None:
    assert "can't be read" in faults(FIRSTCOME_TOKENS=str(tmp_path / "none"))
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    assert "can't be read" in faults(FIRSTCOME_TOKENS=str(file))
    assert "can't be read" in faults(FIRSTCOME_TOKENS=str(tmp_path))


def test_the_burst_is_a_second_of_the_rate_and_at_least_a_batch() -> None:
    def burst(**settings: str) -> int:
        return issuer_config({**ENGINES, "FIRSTCOME_AUTH": "off", **settings}).access.rate_burst

    assert burst(FIRSTCOME_RATE_PER_S="5") == 1_000
    assert burst(FIRSTCOME_RATE_PER_S="5000") == 5_000
    assert burst(FIRSTCOME_RATE_PER_S="5000", FIRSTCOME_RATE_BURST="7") == 7
