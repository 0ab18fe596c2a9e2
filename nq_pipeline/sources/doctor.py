"""What `nq doctor` tells: for every vendor whether it would answer, and what the market is doing."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime

from nq_pipeline.errors import SourceError
from nq_pipeline.market import sessions
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import SOURCE_NAMES, Settings
from nq_pipeline.sources.base import Probe, Source, describe
from nq_pipeline.sources.registry import open_source
from nq_pipeline.sources.snapshot import GRACE_S, build_request, exchange_for

CONFIGURED = (Outcome.NOT_CONFIGURED,)
ENTITLED = (Outcome.NOT_ENTITLED, Outcome.OVER_BUDGET)


def examine(settings: Settings) -> Mapping[str, Probe]:
    """Ask every vendor its cheapest free question, all at the same time, within the deadline."""
    probes: dict[str, Probe] = {}

    def work(source: Source) -> None:
        probes[source.name] = _probe(source, settings)

    sources = [open_source(name, settings) for name in SOURCE_NAMES]
    threads = [threading.Thread(target=work, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    end = settings.clock.monotonic() + settings.source_deadline_s + GRACE_S
    for thread in threads:
        thread.join(max(0.0, end - settings.clock.monotonic()))
    silent = Probe(True, False, None, "no answer in time", "try again, or raise NQ_SOURCE_DEADLINE_S")
    return {name: probes.get(name, silent) for name in SOURCE_NAMES}


def _probe(source: Source, settings: Settings) -> Probe:
    exchange = exchange_for(source, settings, build_request(settings))
    try:
        return source.probe(exchange)
    except SourceError as error:
        configured = error.outcome not in CONFIGURED
        entitled = False if error.outcome in ENTITLED else None
        reachable = None if not configured else error.outcome in ENTITLED
        return Probe(configured, reachable, entitled, str(error))
    finally:
        exchange.close()


def market_state(now: datetime) -> str:
    """One sentence: open or closed, until when, and the trade date in force."""
    session = sessions.current_session(now)
    if sessions.is_open(now):
        regular = "regular hours" if sessions.is_open(now, "rth") else "outside regular hours"
        until = describe(sessions.next_boundary(now))
        return f"open ({regular}), trade date {session.trade_date}, until {until}"
    return f"closed, trade date {session.trade_date} was the last, opens {describe(sessions.next_open(now))}"
