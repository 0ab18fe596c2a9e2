"""Checks of the live feed: what the gateway grants, sends and names, and how late it is."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date

import numpy as np
import numpy.typing as npt

from nq_pipeline.capture import gateway
from nq_pipeline.capture.gateway import SessionState, future_parents
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.reconnect_policy import EndReason
from nq_pipeline.capture.schema_fallback import FALLBACK_ORDER, best_granted
from nq_pipeline.clock import NS_PER_S
from nq_pipeline.errors import NotConfigured
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.market.symbology import Unparsed, parse_globex
from nq_pipeline.sources.databento.spec import check_databento_key
from nq_pipeline.spend.entitlements import LOWEST_LIVE_SCHEMA
from nq_pipeline.verify.check import CheckResult, Context, failed, passed, skipped
from nq_pipeline.verify.feed_recorder import Recording

NAMING_S = 10.0
"""How long to wait for the names of instruments while the market is closed."""
UNREADABLE_SHARE = 0.01
"""The share of names that may be unreadable."""
CLOCK_LIMIT_S = 0.5
"""How wrong the local clock may be."""
LATENCY_LIMIT_S = 1.0
"""The limit of the median latency from Databento's receipt to ours."""

_EXPIRY = re.compile(rf"[{MONTH_CODES}][0-9]{{1,2}}")


def connect(ctx: Context) -> CheckResult:
    """The gateway answers, accepts the key, grants the dataset and starts a session."""
    recorder = ctx.recorder
    where = f"{recorder.host}:{recorder.port}"
    if recorder.key is None or not recorder.key.get_secret_value().strip():
        return skipped("there is no key; set DATABENTO_API_KEY")
    try:
        check_databento_key(recorder.key, recorder.host)
        version, connected_s = asyncio.run(recorder.read_greeting())
    except NotConfigured as error:
        return failed(str(error))
    except OSError as error:
        return failed(f"{where} does not answer ({error.strerror or error or 'no answer in time'})")
    if not version:
        return failed(f"{where} answers, but does not greet like a gateway; check NQ_DATABENTO_GATEWAY")
    futures = future_parents(ctx.settings.products)
    found = recorder.record(LOWEST_LIVE_SCHEMA, futures, _is_named, patience_s=ctx.timing.patience_s)
    facts = {"address": where, "version": version, "connect_s": connected_s, "opened_s": found.opened_s}
    if found.failure and not _is_refused(found):  # `entitlement` reports a refused schema
        return failed(f"gateway {version} at {where}: {found.failure}", **facts)
    if not found.state.bytes:
        return failed(
            f"gateway {version} accepted the key but sent nothing for {found.seconds:.0f} s", **facts
        )
    return passed(
        f"gateway {version} at {where} accepted the key and granted {recorder.dataset}, "
        f"session {found.state.session_id} in {found.opened_s:.2f} s",
        session_id=found.state.session_id,
        **facts,
    )


def stream(ctx: Context) -> CheckResult:
    """Records arrive, until we drop the connection; `reconnect` resumes it.

    An open market may take longer than the stream was to last until its first trade.
    """
    opened = sessions.is_open(ctx.clock.now())
    seconds = ctx.stream_s if opened else min(ctx.stream_s, NAMING_S)

    def enough(state: SessionState, elapsed: float) -> bool:
        return elapsed >= seconds and (state.records > 0 or not opened)

    with CaptureLog(ctx.work / "capture", ctx.recorder.dataset, clock=ctx.clock) as log:
        ctx.live = found = ctx.recorder.record(
            LOWEST_LIVE_SCHEMA, ctx.parents, enough, patience_s=max(seconds, ctx.timing.patience_s),
            sink=log.append,
        )  # fmt: skip
    ctx.evidence.save("stream.dbn", found.sample())
    instruments = len(np.unique(found.trades["instrument_id"]))
    facts = {
        "seconds": found.seconds, "first_record_s": found.first_s, "trades": len(found.trades),
        "instruments": instruments, "bytes": found.state.bytes, "slow_reader_warnings": found.state.warnings,
    }  # fmt: skip
    if found.failure:
        return failed(f"the session ended after {found.seconds:.1f} s: {found.failure}", **facts)
    if found.state.skipped:
        return failed(f"the gateway skipped records: {found.state.skipped}", **facts)
    if not len(found.trades):
        if opened:
            return failed(f"the market is open but no trade arrived in {found.seconds:.0f} s", **facts)
        opens = in_chicago(sessions.next_open(ctx.clock.now()))
        return skipped(f"the market is closed, so nothing can stream; it opens {opens}", **facts)
    return passed(
        f"first trade after {found.first_s:.1f} s; {len(found.trades):,} trades of {instruments:,} "
        f"instruments in {found.seconds:.0f} s",
        **facts,
    )


def symbols(ctx: Context) -> CheckResult:
    """Parents resolve, and the names of their instruments can be read."""
    if ctx.live is None or not len(ctx.live.mappings):
        return failed("the gateway named no instrument")
    instruments, kinds = Counter[str](), Counter[str]()
    series, unreadable = set[str](), list[str]()
    on = sessions.trade_date(ctx.clock.now())
    for parent, symbol in _names(ctx.live):
        kind, what = _classify(parent, symbol, on)
        instruments[parent] += 1
        kinds[kind] += 1
        if kind == "option":
            series.add(what)
        elif kind == "unread":
            unreadable.append(f"{symbol!r} of {parent} ({what})")
    always, at_times = gateway.missing_parents(ctx.parents, set(instruments))
    facts = {
        "instruments": dict(instruments), "kinds": dict(kinds), "series": sorted(series),
        "unread": unreadable[:20], "missing": always, "not_listed_now": at_times,
        "refused": ctx.live.state.unknown,
    }  # fmt: skip
    if always:
        return failed(f"no instrument of {', '.join(always)}, which is always listed", **facts)
    outright = kinds.total() - kinds["spread"]
    if len(unreadable) > UNREADABLE_SHARE * outright:
        return failed(
            f"{len(unreadable):,} of {outright:,} names cannot be read, e.g. {unreadable[0]}", **facts
        )
    absent = f"; not listed now: {', '.join(at_times)}" if at_times else ""
    odd = f"; {len(unreadable)} unreadable, e.g. {unreadable[0]}" if unreadable else ""
    return passed(
        f"{kinds['option']:,} options of {len(series)} series, {kinds['future']} futures and "
        f"{kinds['spread']:,} spreads of {len(instruments)} parents{absent}{odd}",
        **facts,
    )


def entitlement(ctx: Context) -> CheckResult:
    """Which schemas the gateway grants; each is requested, since catalogues do not say."""
    granted, refused = [], dict[str, str]()
    for schema in FALLBACK_ORDER:
        found = ctx.recorder.record(
            schema, future_parents(ctx.settings.products), _is_granted, patience_s=ctx.timing.patience_s
        )
        if found.ending.reason is EndReason.STOPPED and found.state.mapped:
            granted.append(schema)
        elif _is_refused(found):
            refused[schema] = found.ending.text
        else:
            why = found.failure or "the gateway sent nothing"
            return failed(f"the plan could not be determined: {schema}: {why}", granted=granted)
    facts = {"granted": granted, "refused": refused}
    refusals = "; ".join(f"{schema} refused ({text})" for schema, text in refused.items())
    if LOWEST_LIVE_SCHEMA not in granted:
        return failed(
            f"the plan streams no {LOWEST_LIVE_SCHEMA}, so nothing can be captured: {refusals}", **facts
        )
    fallbacks = [
        f"NQ_CAPTURE_SCHEMA={wanted} falls back to {best_granted(wanted, refused)}"
        for wanted in {ctx.settings.capture.options_schema, ctx.settings.capture.futures_schema}
        & refused.keys()
    ]
    return passed(
        "; ".join([f"granted: {', '.join(granted)}", *filter(None, [refusals]), *fallbacks]), **facts
    )


def clock(ctx: Context) -> CheckResult:
    """The local clock agrees with Databento's: the fastest record is neither early nor late."""
    assert ctx.live is not None
    fastest_s = float(_latencies_s(ctx.live).min())
    facts = {"fastest_s": fastest_s, "limit_s": CLOCK_LIMIT_S}
    if abs(fastest_s) > CLOCK_LIMIT_S:
        which = "behind" if fastest_s < 0 else "ahead of"
        return failed(
            f"the local clock seems {abs(fastest_s):.2f} s {which} Databento's; synchronize it by NTP, since "
            "latencies, freshness and windows depend on it",
            **facts,
        )
    return passed(f"the fastest record arrived {fastest_s * 1e3:,.1f} ms after its ts_recv", **facts)


def latency(ctx: Context) -> CheckResult:
    """Latency from the exchange to Databento and from there to us, clock error included."""
    assert ctx.live is not None
    trades = ctx.live.trades
    late = _latencies_s(ctx.live)
    median, p99, most = (float(value) for value in np.quantile(late, [0.5, 0.99, 1.0]))
    upstream = (trades["ts_recv"].astype(np.int64) - trades["ts_event"].astype(np.int64)) / NS_PER_S
    facts = {
        "median_s": median, "p99_s": p99, "max_s": most,
        "exchange_to_databento_median_s": float(np.median(upstream)), "limit_s": LATENCY_LIMIT_S,
    }  # fmt: skip
    text = (
        f"ts_recv to here: median {median * 1e3:,.1f} ms, p99 {p99 * 1e3:,.1f} ms, max {most * 1e3:,.0f} "
        f"ms; ts_event to ts_recv: median {np.median(upstream) * 1e3:,.2f} ms"
    )
    if median > LATENCY_LIMIT_S:
        return failed(f"half of all records are more than {LATENCY_LIMIT_S:.0f} s late; {text}", **facts)
    return passed(text, **facts)


def _names(found: Recording) -> Iterator[tuple[str, str]]:
    """Parent and raw symbol of every instrument, each once."""
    pairs = np.unique(found.mappings[["stype_in_symbol", "stype_out_symbol"]])
    for parent, symbol in pairs.tolist():
        yield parent.decode("utf-8", "replace"), symbol.decode("utf-8", "replace")


def _classify(parent: str, symbol: str, on: date) -> tuple[str, str]:
    """The kind of a symbol, and its series or why it cannot be read."""
    root, _, kind = parent.partition(".")
    if symbol.startswith("UD:") or "-" in symbol:
        return "spread", ""
    if kind == "FUT":
        known = symbol.startswith(root) and _EXPIRY.fullmatch(symbol, len(root))
        return ("future", symbol) if known else ("unread", "not root, month letter and year")
    option = parse_globex(symbol, on=on)
    if isinstance(option, Unparsed):
        return "unread", option.reason
    if option.series.root != root:
        return "unread", f"it belongs to {option.series.root}"
    return "option", option.series.key


def _is_named(state: SessionState, elapsed: float) -> bool:
    """Names arrive first; a session without any sends at least something."""
    return bool(state.mapped) or (state.bytes > 0 and elapsed >= NAMING_S)


def _is_refused(found: Recording) -> bool:
    """Whether the plan lacks the schema, by the gateway's message."""
    return found.ending.reason is EndReason.ERROR and "not authorized" in found.ending.text.lower()


def _is_granted(state: SessionState, elapsed: float) -> bool:
    """A refusal arrives at once, so names and a second without a refusal are a grant."""
    return bool(state.mapped) and elapsed >= 1.0


def _latencies_s(found: Recording) -> npt.NDArray[np.float64]:
    return np.asarray((found.arrived - found.trades["ts_recv"].astype(np.int64)) / NS_PER_S)
