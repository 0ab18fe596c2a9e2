"""The second count of what a replay brought: another replay, of which nothing is kept but numbers.

That the gateway calls a replay complete proves nothing: it was seen to leave records out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from nq_pipeline.capture.gaps import Gap, RecordCount
from nq_pipeline.capture.gateway import GatewaySession, Subscription
from nq_pipeline.capture.reconnect_policy import EndReason, SessionEnd
from nq_pipeline.capture.schema_fallback import RTYPES
from nq_pipeline.dbn.framer import Frame

POLL_S = 0.02


def subscriptions(gaps: Sequence[Gap], parents: Mapping[str, tuple[str, ...]]) -> list[Subscription]:
    """What has to be replayed to count some gaps; `parents` by schema."""
    schemas = sorted({gap.schema for gap in gaps})
    return [
        Subscription(schema, parents[schema], min(g.first_ns for g in gaps if g.schema == schema))
        for schema in schemas
    ]


async def recount(
    session_for: Callable[[Callable[[Frame], None]], GatewaySession],
    address: tuple[str, int],
    asked: list[Subscription],
    gaps: Sequence[Gap],
    *,
    give_up_s: float,
) -> tuple[dict[str, RecordCount], SessionEnd | None]:
    """Count the records of some gaps in a replay.

    Parameters
    ----------
    session_for
        Makes a session that hands its frames to a function.
    give_up_s
        How long it may take.

    Returns
    -------
    The count of each gap by its id, and None; or the end of the session, had it come before the
    replays were completed.
    """
    counts = {gap.gap_id: RecordCount(RTYPES[gap.schema], gap.first_ns, gap.last_ns) for gap in gaps}

    def take(frame: Frame) -> None:
        for count in counts.values():
            count.add(frame)

    wanted, loop = {s.schema for s in asked}, asyncio.get_running_loop()
    session, until = session_for(take), loop.time() + give_up_s
    try:
        await session.open(*address, asked)
        while not (session.ending.done() or wanted <= session.state.replayed.keys() or loop.time() > until):
            await asyncio.wait([session.ending], timeout=POLL_S)
    finally:
        session.close(SessionEnd(EndReason.STOPPED, "it took too long"))
    ending = await session.ending
    return counts, None if wanted <= session.state.replayed.keys() else ending
