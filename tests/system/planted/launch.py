"""Runs a service's own main, after a bug has been planted into it."""

from __future__ import annotations

import os

from services.issuer import __main__ as issuer_main
from services.ledger import __main__ as ledger_main
from services.runtime import lifecycle
from services.runtime.config import issuer_config, ledger_config

GROUP_VARIABLE = "PLANTED_GROUP"
"""Names a consumer group of the ledger's own: it then works on all partitions, as a zombie does that does not know
that it was replaced."""


def ledger() -> None:
    """The ledger as it is by now."""
    ledger_main.GROUP = os.environ.get(GROUP_VARIABLE, ledger_main.GROUP)
    lifecycle.main("ledger", ledger_config, lambda config: config.common, ledger_main.serve)


def issuer() -> None:
    """The issuer as it is by now."""
    lifecycle.main("issuer", issuer_config, lambda config: config.common, issuer_main.serve)
