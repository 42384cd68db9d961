"""Unary IssueCoupon beside calls that do nothing and the Redis system: alternating slices, medians of their ratios.

Callers and all that works for the called system share the machine's cores in each slice; everything else is idle.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bench.callers import Told, run
from bench.load import Load
from bench.noop import GRPC_LISTEN
from bench.results import median_ratio, ratios_text
from bench.session import Session, Usage, program
from bench.systems import Firstcome, System, tracing
from stack import ServiceProcess, free_port
from stack.ports import HOST

STOCK = 5_000_000
HOT = "coupons/hot"
GONE = "coupons/gone"
REFUSED = "FAILED_PRECONDITION"


async def scenario(session: Session) -> None:
    """As many rounds as the lengths say, each a slice of each target in turn, and of each in the opposite order: what
    the machine gains or loses within a round befalls all of them alike. Each round has starts of its own of the servers
    whose calls are compared most closely, for two starts of the same code differ by up to 8 % in calls a second. Few
    callers come in each second round only."""
    lengths, results = session.lengths, session.results
    async with AsyncExitStack() as open_:
        ours = await open_.enter_async_context(session.firstcome(names=("issuer", "ledger")))
        silent = await open_.enter_async_context(session.firstcome(telemetry=False, names=("issuer", "ledger")))
        redis = await open_.enter_async_context(session.redis(batch=1_000))
        for system in (ours, silent, redis):
            await system.create(["hot"], STOCK)
            await _sell_out(system, callers=lengths.callers)
        bare = f"{HOST}:{free_port()}"
        await open_.enter_async_context(program("bench.noop", bare, log_path=session.logs / "noop.log"))
        behind, on_grpcs, noop = await _noop_behind(session, open_)
        anew = [noop, ours.processes["issuer"], silent.processes["issuer"]]
        targets = {
            "noop_bare": (bare, HOT, lengths.callers),
            "noop": (behind, HOT, lengths.callers),
            "noop_grpc": (on_grpcs, HOT, lengths.callers),
            "unary": (ours.address, HOT, lengths.callers),
            "cached": (ours.address, GONE, lengths.callers),
            "noop_refusing": (behind, "coupons/refused", lengths.callers),
            "telemetry_off": (silent.address, HOT, lengths.callers),
            "baseline_unary": (redis.address, HOT, lengths.callers),
            "noop_few": (behind, HOT, lengths.few_callers),
            "unary_few": (ours.address, HOT, lengths.few_callers),
        }
        by_few = ("noop_few", "unary_few")
        told: dict[str, list[Told]] = {name: [] for name in targets}
        usage: Usage | None = None
        for round_ in range(lengths.slices):
            if round_:
                await _start_anew(anew)
            cold = (behind, on_grpcs, ours.address, silent.address, *(() if round_ else (bare, redis.address)))
            for number, address in enumerate(cold):
                load = Load(address, HOT, f"w{round_}-{number}", callers=lengths.callers, seconds=lengths.warm_up_s)
                session.expect("unary warm-up", await run(load, processes=1))
            names = [name for name in targets if name not in by_few or not round_ % 2]
            for number, name in enumerate([*names, *reversed(names)]):
                address, coupon, callers = targets[name]
                load = Load(address, coupon, f"u{round_}-{number}", callers=callers, seconds=lengths.slice_s)
                if name == "unary":
                    usage = Usage(ours)
                one = await run(load, processes=1)
                if name == "unary" and usage is not None:
                    usage.stop(one.cpu_s)
                told[name].append(one)
                session.expect(f"unary {name}", one, *([REFUSED] if name in ("cached", "noop_refusing") else []))
        if usage is not None:
            last = told["unary"][-1].requests
            results.put(**{f"unary_cpu_us_{name}": us for name, us in usage.by_name_us(last).items()})
        for system in (ours, silent):
            await system.until_settled()
        await session.check_all({"unary": ours, "unary_untraced": silent})
    per_s = {
        name: [(there.per_s + back.per_s) / 2 for there, back in zip(each[::2], each[1::2], strict=True)]
        for name, each in told.items()
    }
    for name, rates in per_s.items():
        results.put(**{f"{name}_per_s": statistics.median(rates)})
        results.put(**{f"{name}_closed_p50_ms": statistics.median(one.ms(50) for one in told[name])})
        results.put(**{f"{name}_closed_p99_ms": statistics.median(one.ms(99) for one in told[name])})
        # Near 1 the caller is the limit, and the server could do more.
        results.put(**{f"{name}_client_cores": statistics.median(one.cpu_s / lengths.slice_s for one in told[name])})
    results.put(
        unary_ratio=median_ratio(per_s["unary"], per_s["noop"]),
        unary_few_ratio=median_ratio(per_s["unary_few"], per_s["noop_few"]),
        unary_grpc_ratio=median_ratio(per_s["unary"], per_s["noop_grpc"]),
        unary_bare_ratio=median_ratio(per_s["unary"], per_s["noop_bare"]),
        cached_ratio=median_ratio(per_s["cached"], per_s["noop"]),
        cached_grpc_ratio=median_ratio(per_s["cached"], per_s["noop_grpc"]),
        cached_refusing_ratio=median_ratio(per_s["cached"], per_s["noop_refusing"]),
        telemetry_ratio=median_ratio(per_s["unary"], per_s["telemetry_off"]),
        baseline_unary_ratio=median_ratio(per_s["unary"], per_s["baseline_unary"]),
        unary_slices=ratios_text(per_s["unary"], per_s["noop"]),
    )


async def _sell_out(system: System, *, callers: int) -> None:
    await system.create(["gone"], 1)
    await run(Load(system.address, GONE, "first", callers=callers, calls=callers), processes=1)
    if isinstance(system, Firstcome):
        await system.until_settled()


async def _start_anew(processes: Sequence[ServiceProcess]) -> None:
    def start_anew(process: ServiceProcess) -> None:
        process.stop()
        process.start()
        process.wait_ready()

    await asyncio.gather(*(asyncio.to_thread(start_anew, process) for process in processes))


async def _noop_behind(session: Session, open_: AsyncExitStack) -> tuple[str, str, ServiceProcess]:
    """Its address behind our server, that on grpc's own, and the process of both."""
    listen, on_grpcs, health_port = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}", free_port()
    env = {
        "FIRSTCOME_KAFKA_BOOTSTRAP": "unused",
        "FIRSTCOME_POSTGRES_DSN": "postgresql://unused",
        "FIRSTCOME_LISTEN": listen,
        GRPC_LISTEN: on_grpcs,
        "FIRSTCOME_HEALTH_LISTEN": f"{HOST}:{health_port}",
        "FIRSTCOME_METRICS_LISTEN": f"{HOST}:{free_port()}",
        "FIRSTCOME_AUTH": "off",
        **tracing(session.collector),
    }
    log_path = session.logs / "noop_behind.log"
    process = ServiceProcess("noop", env, log_path=log_path, health_port=health_port, module="bench.noop_behind")
    process.start()
    open_.callback(process.stop)
    process.wait_ready()
    return listen, on_grpcs, process
