"""The three dashboards. `make dashboards` writes dashboards/*.json; `--check` says whether those are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.observability.panels import Dashboard, Panel, Query

FOLDER = Path(__file__).parent / "dashboards"
RATE = "$__rate_interval"
_BROKEN = Panel(
    "Broken promises",
    "0: no coupon was given twice or too often, and what people were told is what the books say. Anything else wakes "
    "somebody up.",
    "none",
    [
        Query("sum(max by (promise) (firstcome_broken_promises))", "coupons with wrong books"),
        Query('sum(firstcome_outcome_checks_total{result="disagree"})', "outcomes that contradict the books"),
    ],
    kind="stat",
    width=6,
    limits={1: "red"},
)


def _quantiles(metric: str, by: str = "", legend: str = "", select: str = "") -> list[Query]:
    labels = f"le, {by}" if by else "le"
    return [
        Query(f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{select}[{RATE}])))", f"{legend}{name}")
        for q, name in ((0.5, "half are faster"), (0.99, "99 % are faster"))
    ]


RUSH = Dashboard(
    "firstcome-rush",
    "firstcome: the rush",
    "What business looks at: how many are left, how many people come, how long they wait.",
    {
        "Is all well?": [
            _BROKEN,
            Panel(
                "Verdicts within a second",
                "Share of requests that were decided within 1 s of being accepted. Promised: 99.9 %.",
                "percentunit",
                [
                    Query(
                        f'(sum(rate(firstcome_accept_to_settle_seconds_bucket{{le="1.0"}}[{RATE}]))'
                        f" / sum(rate(firstcome_accept_to_settle_seconds_count[{RATE}]))) >= 0 or vector(1)",
                        "decided within 1 s",
                    )
                ],
                kind="stat",
                width=6,
                maximum=1,
            ),
            Panel(
                "Requests answered",
                'Share of requests that got an answer, yes or no, and not "call again". Promised: 99.95 %.',
                "percentunit",
                [
                    Query(
                        "(1 - sum(rate(firstcome_issue_answers_total"
                        f'{{answer=~"INTERNAL|OVERLOADED|.*_UNAVAILABLE"}}[{RATE}]))'
                        f" / sum(rate(firstcome_issue_answers_total[{RATE}]))) >= 0 or vector(1)",
                        "answered",
                    )
                ],
                kind="stat",
                width=6,
                maximum=1,
            ),
            Panel(
                "People waiting for a verdict",
                "Calls that are held open until the verdict is known.",
                "short",
                [Query("sum(firstcome_waiters)", "waiting")],
                kind="stat",
                width=6,
            ),
        ],
        "Coupons": [
            Panel(
                "Coupons left",
                "Stock that is left of the coupons that are asked for most.",
                "short",
                [Query("max by (coupon) (firstcome_coupon_remaining)", "{{coupon}}")],
                kind="bargauge",
                width=12,
            ),
            Panel(
                "Coupons given",
                "How many of each coupon people have.",
                "short",
                [Query("max by (coupon) (firstcome_coupon_issued)", "{{coupon}}")],
                width=12,
            ),
        ],
        "People": [
            Panel(
                "Requests by answer",
                "ACCEPTED: has a place in the line, the verdict follows. ISSUED: has the coupon. SOLD_OUT and the "
                "like: no. UNAVAILABLE, OVERLOADED: call again.",
                "reqps",
                [Query(f"sum by (answer) (rate(firstcome_issue_answers_total[{RATE}]))", "{{answer}}")],
                stacked=True,
            ),
            Panel(
                "Length of the line",
                "Requests that are not decided yet in front of whoever comes now, by coupon.",
                "short",
                [Query("max by (coupon) (firstcome_coupon_line_records)", "{{coupon}}")],
            ),
            Panel(
                "From accepted to decided",
                "How long a request waits in the line.",
                "s",
                _quantiles("firstcome_accept_to_settle_seconds"),
                limits={1: "red"},
            ),
        ],
    },
)

OPERATIONS = Dashboard(
    "firstcome-operations",
    "firstcome: operations",
    "Where the line is stuck, and what of: calls, line, Kafka, PostgreSQL, processes.",
    {
        "Is all well?": [
            _BROKEN,
            Panel(
                "Services that answer",
                "Processes by service whose metrics are reached.",
                "none",
                [Query('sum by (job) (up{job=~"issuer|ledger|dlq"})', "{{job}}")],
                kind="stat",
                width=6,
            ),
            Panel(
                "Halted partitions",
                "Partitions that stand still until a person has looked: the log's partition_halted says why.",
                "none",
                [Query("sum by (topic) (max by (topic, partition) (firstcome_partition_halted))", "{{topic}}")],
                kind="stat",
                width=6,
                limits={1: "red"},
            ),
            Panel(
                "Line behind",
                "For how long the oldest undecided request of the slowest partition has waited.",
                "s",
                [Query("max(firstcome:line_lag:seconds)", "oldest")],
                kind="stat",
                width=6,
                limits={1: "orange", 10: "red"},
            ),
        ],
        "Calls": [
            Panel(
                "Calls",
                "Calls a second, by method.",
                "reqps",
                [
                    Query(
                        f"sum by (rpc_method) (rate(rpc_server_call_duration_seconds_count[{RATE}]))", "{{rpc_method}}"
                    )
                ],
            ),
            Panel(
                "Calls by answer",
                "OK, or the reason of the error. Refusals such as SOLD_OUT are no faults.",
                "reqps",
                [
                    Query(
                        "sum by (rpc_response_status_code, error_type)"
                        f" (rate(rpc_server_call_duration_seconds_count[{RATE}]))",
                        "{{rpc_response_status_code}} {{error_type}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Duration of IssueCoupon",
                "With wait it includes the time until the verdict.",
                "s",
                _quantiles(
                    "rpc_server_call_duration_seconds", select='{rpc_method="coupon.v1.IssuerService/IssueCoupon"}'
                ),
            ),
            Panel(
                "Calls under way",
                "Above the limit calls are refused as OVERLOADED.",
                "short",
                [
                    Query("firstcome_calls_in_flight", "{{job}} {{instance}}"),
                    Query("max by (job) (firstcome_calls_in_flight_max)", "{{job}}: limit"),
                ],
            ),
            Panel(
                "Gathered together",
                "How many requests share a query (look_up, verdicts) or an append to the line, on average.",
                "short",
                [
                    Query(
                        f"sum by (queue) (rate(firstcome_gathered_sum[{RATE}]))"
                        f" / sum by (queue) (rate(firstcome_gathered_count[{RATE}]))",
                        "{{queue}}",
                    )
                ],
            ),
            Panel(
                "Waiting for a verdict",
                "Above the limit calls with wait are refused as OVERLOADED.",
                "short",
                [
                    Query("firstcome_waiters", "{{instance}}"),
                    Query("max(firstcome_waiters_max)", "limit"),
                ],
            ),
        ],
        "Line and ledger": [
            Panel(
                "Records behind",
                "Records of the line that are not decided yet, by partition.",
                "short",
                [Query("firstcome:line_lag:records", "partition {{partition}}")],
            ),
            Panel(
                "Seconds behind",
                "For how long the oldest of them has waited. Above 10 s somebody is called.",
                "s",
                [Query("firstcome:line_lag:seconds", "partition {{partition}}")],
                limits={10: "red"},
            ),
            Panel(
                "Verdicts",
                "Records decided a second, by verdict and reason.",
                "reqps",
                [Query(f"sum by (verdict, reason) (rate(firstcome_verdicts_total[{RATE}]))", "{{verdict}} {{reason}}")],
                stacked=True,
            ),
            Panel(
                "Batch",
                "Records decided in one transaction; at most 4,000.",
                "short",
                [
                    Query(
                        f"sum(rate(firstcome_batch_records_sum[{RATE}]))"
                        f" / sum(rate(firstcome_batch_records_count[{RATE}]))",
                        "on average",
                    )
                ],
            ),
            Panel(
                "Transaction",
                "How long a deciding transaction takes.",
                "s",
                _quantiles("firstcome_transaction_duration_seconds"),
            ),
            Panel(
                "Committed, not yet published",
                "Verdicts that are in the tables and on their way to the outcomes topic.",
                "short",
                [Query("max by (partition) (firstcome_unpublished_records)", "partition {{partition}}")],
            ),
            Panel(
                "Tried again in place",
                "Interruptions of the work on a partition, mostly since Kafka or PostgreSQL was away.",
                "ops",
                [
                    Query(
                        f"sum by (job, partition) (rate(firstcome_partition_retries_total[{RATE}]))",
                        "{{job}} partition {{partition}}",
                    )
                ],
            ),
            Panel(
                "Fenced batches",
                "Batches refused since another process had taken the partition over: a few at each deploy, or a storm.",
                "ops",
                [Query(f"sum by (job) (rate(firstcome_fenced_batches_total[{RATE}]))", "{{job}}")],
            ),
            Panel(
                "Outcomes compared with the books",
                "Samples of what people were told, looked up in the tables.",
                "ops",
                [Query(f"sum by (result) (rate(firstcome_outcome_checks_total[{RATE}]))", "{{result}}")],
            ),
        ],
        "Kafka, PostgreSQL, processes": [
            Panel(
                "Trouble with Kafka or PostgreSQL",
                "Failures to reach it, or to be served in time.",
                "ops",
                [
                    Query(
                        f"sum by (job, dependency) (rate(firstcome_dependency_errors_total[{RATE}]))",
                        "{{job}}: {{dependency}}",
                    )
                ],
            ),
            Panel(
                "Producers replaced",
                "Kafka producers that were replaced after an error, since the process began.",
                "short",
                [Query("sum by (job) (firstcome_producer_recycles_total)", "{{job}}")],
            ),
            Panel(
                "Connections to PostgreSQL",
                "Of each process's pool.",
                "short",
                [
                    Query('firstcome_postgres_connections{state="used"}', "{{job}} {{instance}}: used"),
                    Query("max by (job) (firstcome_postgres_connections_max)", "{{job}}: limit"),
                ],
            ),
            Panel(
                "Lag of the event loop",
                "How late a process does what is due: it is overloaded, or something blocks it.",
                "s",
                [Query("firstcome_event_loop_lag_seconds", "{{job}} {{instance}}")],
            ),
            Panel(
                "CPU",
                "Cores that each process uses. A service uses one at most.",
                "short",
                [Query(f'rate(process_cpu_seconds_total{{job=~"issuer|ledger|dlq"}}[{RATE}])', "{{job}} {{instance}}")],
            ),
            Panel(
                "Memory",
                "Resident memory of each process.",
                "bytes",
                [Query('process_resident_memory_bytes{job=~"issuer|ledger|dlq"}', "{{job}} {{instance}}")],
            ),
        ],
    },
)

DEAD_LETTERS = Dashboard(
    "firstcome-dead-letters",
    "firstcome: dead letters and replay",
    "What could not be processed, what is tried again, and what waits for an operator.",
    {
        "Now": [
            Panel(
                "Dead letters",
                "RETRYING: is put into the line again by itself. REDRIVEN: is in the line again. PARKED: waits for an "
                "operator. RESOLVED, DISCARDED: done.",
                "none",
                [Query("max by (state) (firstcome_dead_letters)", "{{state}}")],
                kind="stat",
                width=12,
            ),
            Panel(
                "Age of the oldest",
                "Since its first failure. PARKED ones should not wait longer than a day.",
                "s",
                [Query("max by (state) (firstcome_dead_letter_oldest_seconds)", "{{state}}")],
                kind="stat",
                width=12,
                limits={86_400: "red"},
            ),
        ],
        "Coming and going": [
            Panel(
                "Failures filed",
                "By the line's reason and the state that they led to.",
                "ops",
                [
                    Query(
                        f"sum by (reason, state) (rate(firstcome_dead_letters_filed_total[{RATE}]))",
                        "{{reason}} → {{state}}",
                    )
                ],
            ),
            Panel(
                "Put into the line again, resolved",
                "Redrives, and redrives that got a verdict.",
                "ops",
                [
                    Query(f"sum(rate(firstcome_redrives_total[{RATE}]))", "put into the line again"),
                    Query(f"sum(rate(firstcome_dead_letters_resolved_total[{RATE}]))", "resolved"),
                ],
            ),
            Panel(
                "Dead letters over time",
                "By state.",
                "short",
                [Query("max by (state) (firstcome_dead_letters)", "{{state}}")],
            ),
        ],
        "Replay": [
            Panel(
                "Replay jobs",
                "By kind and state. REDRIVE sends dead letters through the line again, AUDIT compares the log with the "
                "tables, REPUBLISH tells the outcomes of a range once more.",
                "none",
                [Query("max by (kind, state) (firstcome_replay_jobs)", "{{kind}} {{state}}")],
                kind="bargauge",
            ),
            Panel(
                "Worked on by ended jobs",
                "Dead letters or records, since the process began.",
                "short",
                [Query("sum by (kind) (firstcome_replay_done_total)", "{{kind}}")],
            ),
            Panel(
                "Differences found by audits",
                "Tickets for which the tables have other rows than the log gives. Anything but 0 wakes somebody up.",
                "none",
                [Query("sum(firstcome_replay_differences_total)", "tickets")],
                kind="stat",
                limits={1: "red"},
            ),
        ],
        "The line's side": [
            Panel(
                "In a row",
                "Records in a row that could not be processed. At the limit the partition is paused: a bad deploy is "
                "more likely than so many bad records.",
                "short",
                [
                    Query('max by (partition) (firstcome_parked_run{topic="line"})', "partition {{partition}}"),
                    Query("max(firstcome_parked_run_max)", "limit (0: none)"),
                ],
            ),
            Panel(
                "Not yet filed",
                "Records of the DLQ topic that the dlq has not stored yet.",
                "short",
                [Query('max by (partition) (firstcome_lag_records{topic="dlq"})', "partition {{partition}}")],
            ),
            Panel(
                "Parked by reason",
                "Records of the line that could not be processed, a second.",
                "ops",
                [Query(f'sum by (reason) (rate(firstcome_verdicts_total{{verdict="PARKED"}}[{RATE}]))', "{{reason}}")],
            ),
        ],
    },
)

ALL = (RUSH, OPERATIONS, DEAD_LETTERS)


def files() -> dict[Path, str]:
    """What should be in FOLDER."""
    return {
        FOLDER / f"{one.uid.removeprefix('firstcome-')}.json": json.dumps(one.json(), indent=1, ensure_ascii=False)
        + "\n"
        for one in ALL
    }


def main() -> int:
    """Write them, or with --check compare: 1 where they differ."""
    made = files()
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
        stale += [path.name for path in FOLDER.glob("*.json") if path not in made]
        if stale:
            print(f"dashboards are stale ({', '.join(stale)}): run make dashboards", file=sys.stderr)
        return 1 if stale else 0
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
