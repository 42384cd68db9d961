"""What all commands share: the options that say where and who, a client, output, and exit codes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from firstcome.channel import (
    ADDRESS_DEFAULT,
    CALL_TIMEOUT_S,
    DLQ_ADDRESS_DEFAULT,
    Connection,
    SettingsError,
    Tls,
    token_file,
)
from firstcome.cli.output import Output
from firstcome.client import Client, connect
from firstcome.errors import FirstcomeError


class Exit(IntEnum):
    """2 is a wrong use of the command line."""

    OK = 0
    REFUSED = 1
    UNAVAILABLE = 3
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with. `timeout_s`: of a call, and of a wait for a verdict."""

    client: Client
    out: Output
    timeout_s: float


Command = Callable[..., Awaitable[Exit]]
_PANEL = "Connection and output"


def _shared(
    *,
    address: Annotated[
        str, typer.Option(envvar="FIRSTCOME_ADDRESS", help="The issuer, as <host>:<port>.", rich_help_panel=_PANEL)
    ] = ADDRESS_DEFAULT,
    dlq: Annotated[
        str, typer.Option(envvar="FIRSTCOME_DLQ", help="The dlq, as <host>:<port>.", rich_help_panel=_PANEL)
    ] = DLQ_ADDRESS_DEFAULT,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="FIRSTCOME_TOKEN_FILE", help="A file with the bearer token.", rich_help_panel=_PANEL),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="FIRSTCOME_CA", help="PEM: who vouches for the server; turns TLS on.", rich_help_panel=_PANEL
        ),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(envvar="FIRSTCOME_CERT", help="PEM: your certificate; turns mTLS on.", rich_help_panel=_PANEL),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(envvar="FIRSTCOME_KEY", help="PEM: the certificate's private key.", rich_help_panel=_PANEL),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="JSON, one object a line; errors too.", rich_help_panel=_PANEL)
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            envvar="FIRSTCOME_TIMEOUT_S",
            min=0.1,
            max=3600,
            help="Seconds for a call, retries included.",
            rich_help_panel=_PANEL,
        ),
    ] = CALL_TIMEOUT_S,
) -> None:
    """Only its signature is used: every command has these options, and of the two addresses the one that it calls."""


_SHARED = inspect.signature(_shared, eval_str=True).parameters


def command(
    app: typer.Typer, name: str, *, until_ctrl_c: bool = False, of_dlq: bool = False
) -> Callable[[Command], Command]:
    """Adds `async def f(session, …) -> Exit` to the app as a command with the shared options.

    With `until_ctrl_c` Ctrl-C is how it ends; else it is an interruption. With `of_dlq` it calls the dlq service.
    """
    other_address = "address" if of_dlq else "dlq"
    options = {option: parameter for option, parameter in _SHARED.items() if option != other_address}

    def add(work: Command) -> Command:
        own = list(inspect.signature(work, eval_str=True).parameters.values())[1:]

        def run(**arguments: Any) -> None:
            shared = {option: arguments.pop(option) for option in options}
            out = Output(as_json=shared["json"])
            try:
                status = asyncio.run(_run(work, arguments, shared, out))
            except FirstcomeError as error:
                out.error(error)
                status = Exit.UNAVAILABLE if error.retryable else Exit.REFUSED
            except SettingsError as error:
                raise typer.BadParameter(str(error)) from error
            except KeyboardInterrupt:
                status = Exit.OK if until_ctrl_c else Exit.INTERRUPTED
            raise typer.Exit(status)

        run.__doc__ = work.__doc__
        run.__name__ = work.__name__
        parameters = [*own, *options.values()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(name)(run)
        return work

    return add


async def _run(work: Command, arguments: dict[str, Any], shared: dict[str, Any], out: Output) -> Exit:
    async with connect(_connection(shared)) as client:
        return await work(Session(client, out, shared["timeout"]), **arguments)


def _connection(shared: dict[str, Any]) -> Connection:
    tls = None
    if any(shared[option] is not None for option in ("ca", "cert", "key")):
        tls = Tls(*(_pem(f"--{option}", shared[option]) for option in ("ca", "cert", "key")))
    token = token_file(shared["token_file"]) if shared["token_file"] is not None else None
    address, dlq = shared.get("address", ADDRESS_DEFAULT), shared.get("dlq", DLQ_ADDRESS_DEFAULT)
    return Connection(address, tls, token, shared["timeout"], dlq)


def _pem(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{option}: {path} cannot be read: {error.strerror}") from error
    if b"-----BEGIN" not in content:
        raise SettingsError(f"{option}: {path} is not a PEM file")
    return content
