"""One call of the rush with a trace: where its time went, from the caller to PostgreSQL and back."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.tree import Tree

from demo.plan import Arrival
from stack.otlp import Span


@dataclass(slots=True)
class TracedCall:
    """The caller's own part of the trace; `request_id` says whose call it is."""

    request_id: str = ""
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    start_ns: int = 0
    end_ns: int = 0

    def choose(self, arrivals: Sequence[Arrival]) -> None:
        """The first who waits for the verdict: there will still be coupons."""
        self.request_id = next((one.request_id for one in arrivals if one.wait), "")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the call brings along, so that its trace is kept."""
        return (("traceparent", f"00-{self.trace_id}-{self.span_id}-01"),)


def is_whole(spans: Sequence[Span]) -> bool:
    """Whether all that a settled request leaves has arrived."""
    words = [span.name.partition(" ")[0] for span in spans]
    return words.count("send") >= 2 and "process" in words and any(span.kind == "SERVER" for span in spans)


def print_trace(console: Console, call: TracedCall, spans: Sequence[Span]) -> None:
    """The spans as a tree; milliseconds since the call began, and how long each took."""
    children: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_id].append(span)
    console.print("\n[bold]Where the time of one call went[/] (ms since it began, and how long it took)\n")
    tree = Tree(_line("the call", "caller", 0, call.end_ns - call.start_ns))

    def grow(branch: Tree, span_id: str) -> None:
        for span in sorted(children[span_id], key=lambda span: (span.start_ns, span.name)):
            service = span.service.removeprefix("firstcome-")
            line = _line(span.name, service, span.start_ns - call.start_ns, span.end_ns - span.start_ns)
            grow(branch.add(line), span.span_id)

    grow(tree, call.span_id)
    console.print(tree)


def _line(name: str, service: str, since_ns: int, took_ns: int) -> str:
    begin, more, _ = name.partition(";")
    return f"{begin}{'; …' if more else ''}  [dim]{service}[/]  +{since_ns / 1e6:.1f}  [bold]{took_ns / 1e6:.1f}[/]"
