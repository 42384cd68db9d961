"""Checks from outside whether the system kept its promises: reads topics, tables and client histories, and trusts no
code of the services. `python -m checker --help`."""

from checker.findings import Check, Counts, Finding, Promise, PromiseResult, Report
from checker.history import CallId, HistoryError, HistoryWriter
from checker.pace import Limits
from checker.topics import TopicError
from checker.verify import verify

__all__ = [
    "CallId",
    "Check",
    "Counts",
    "Finding",
    "HistoryError",
    "HistoryWriter",
    "Limits",
    "Promise",
    "PromiseResult",
    "Report",
    "TopicError",
    "verify",
]
