"""What a fault is: what is set up for it, what is done, and what is expected beyond the promises."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.world import World

Inject = Callable[["World", random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Setup:
    """The system that a fault happens to. Services are named `issuer-0`, `issuer-1`, `ledger-0`, … and `dlq-0`.

    `kafka_by_link`, `postgres_by_link`: the services (or kinds of them) that go by the links. `env`: settings of a
    service, or of a kind. `clustered`: on three brokers. `rush_s`: how long people keep arriving.
    """

    issuers: int = 2
    ledgers: int = 2
    dlqs: int = 1
    kafka_by_link: frozenset[str] = frozenset()
    postgres_by_link: frozenset[str] = frozenset()
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    clustered: bool = False
    rush_s: float = 8.0

    @property
    def names(self) -> tuple[str, ...]:
        counts = {"issuer": self.issuers, "ledger": self.ledgers, "dlq": self.dlqs}
        return tuple(f"{kind}-{number}" for kind, count in counts.items() for number in range(count))


@dataclass(frozen=True, slots=True)
class Fault:
    """`inject` returns when nothing more is done; what it broke and did not mend is mended then.

    `standstill_s_max`: for how long a partition may stand still; None: as long as the fault lasts. `believed_max`: so
    many records may be parked as INTERNAL or UNSTORABLE. `stands`: the system is a whole one at the end, so the
    checker compares all of it; otherwise `inject` judges by itself.
    """

    name: str
    what: str
    inject: Inject
    setup: Setup = Setup()
    standstill_s_max: float | None = None
    believed_max: int = 0
    stands: bool = True
