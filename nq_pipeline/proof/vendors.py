"""The checks of the chain vendors: each one's state, and that what is kept is not asked for again."""

from __future__ import annotations

from collections.abc import Callable

from nq_pipeline.proof.finding import Context, Finding, failed, passed, skipped


def vendor(name: str) -> Callable[[Context], Finding]:
    """The check of one chain vendor: what the doctor says of it."""

    def find(ctx: Context) -> Finding:
        if name not in ctx.settings.sources:
            return skipped("not in NQ_SOURCES")
        probe = ctx.probes[name]
        said = "; ".join(filter(None, [probe.detail, probe.mend and f"to mend it, {probe.mend}"]))
        if not probe.configured:
            return skipped(f"not configured: {said}")
        return passed(said) if probe.reachable and probe.entitled else failed(said)

    return find
