"""All faults, in the order of the matrix."""

from __future__ import annotations

from collections.abc import Mapping

from chaos.fault import Fault
from chaos.faults import brokers, callers, crashes, database, deadletters, links, logs, processes, replays, surroundings

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for faults in (
        processes.FAULTS,
        crashes.FAULTS,
        links.FAULTS,
        deadletters.FAULTS,
        callers.FAULTS,
        database.FAULTS,
        replays.FAULTS,
        surroundings.FAULTS,
        logs.FAULTS,
        brokers.FAULTS,
    )
    for fault in faults
}
