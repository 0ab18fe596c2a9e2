"""The record of a run in the raw archive, from which the run can be completed or parsed again.

request    trade_date, snapshot_ts, moment, series, vendor_codes
choose     whether the run selects a chain
sources    by vendor: series, settings, refused, used (request id by digest of the request)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import date
from typing import Any

from nq_pipeline.chains.result import SourceResult
from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.lake.archive import RawArchive
from nq_pipeline.leases.leases import hold_if_shared
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.market.contracts import Series
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest
from nq_pipeline.sources.registry import VENDORS

MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a damaged record raises."""


def planned_record(
    settings: Settings, request: ChainRequest, series: Mapping[str, Sequence[Series]], choose: bool
) -> dict[str, Any]:
    """The record of a run before any answer; `series` are those that each source will request."""
    return {
        "request": {
            "trade_date": request.trade_date.isoformat(),
            "snapshot_ts": to_ns(request.snapshot_ts),
            "moment": to_ns(request.moment),
            "series": [one.key for one in request.series],
            "vendor_codes": dict(request.vendor_codes),
        },
        "choose": choose,
        "sources": {
            name: {
                "series": [one.key for one in own],
                "settings": settings.vendors[name].shaping(),
                "refused": {},
                "used": {},
            }
            for name, own in series.items()
        },
    }


def answered_record(
    settings: Settings, request: ChainRequest, results: Mapping[str, SourceResult], choose: bool
) -> dict[str, Any]:
    """The record of a run with its answers."""
    series = {name: result.series for name, result in results.items()}
    record = planned_record(settings, request, series, choose)
    for name, result in results.items():
        record["sources"][name] |= {"refused": dict(result.answer.refused), "used": dict(result.used)}
    return record


def recorded_request(record: Mapping[str, Any], settings: Settings, run_id: str) -> ChainRequest:
    """The request of a recorded run; raises one of `MALFORMED` when the record is damaged."""
    request = record["request"]
    return ChainRequest(
        trade_date=date.fromisoformat(request["trade_date"]),
        snapshot_ts=from_ns(request["snapshot_ts"]),
        moment=from_ns(request["moment"]),
        series=tuple(Series.parse(key) for key in request["series"]),
        run_id=run_id,
        environment=settings.environment,
        vendor_codes=dict(request["vendor_codes"]),
    )


def source_request(request: ChainRequest, part: Mapping[str, Any]) -> ChainRequest:
    """What one vendor was asked, by its part of a record; raises like `recorded_request`."""
    series = tuple(Series.parse(key) for key in part["series"])
    dict(part["used"])  # a malformed part fails here, not in the middle of a replay
    return replace(request, series=series, refused=dict(part.get("refused", {})))


def recorded_settings(record: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings with the vendors' own as in the run, and with every vendor configured."""
    own = {name: value for part in record["sources"].values() for name, value in part["settings"].items()}
    needed = {
        name: value
        for spec in VENDORS.values()
        for name, value in {**spec.opt_in, **spec.replay_settings}.items()
    }
    return settings.with_values(**{**own, **needed})


def hold_run(settings: Settings, run_id: str, archive: RawArchive) -> AbstractContextManager[bool]:
    """Show the machines that share the archive that a run is alive; it runs also if they cannot be told."""
    if archive.objects.is_local:
        return nullcontext(True)
    return hold_if_shared(settings, f"run/{run_id}", run_id=run_id, unknown=True)


def run_claims(
    settings: Settings, archive: RawArchive
) -> Callable[[str], AbstractContextManager[bool]] | None:
    """A function that holds the lease of a dead run, to finish it, and yields False if the run lives; None if
    no other machine's runs are in the archive, or their leases are not shared."""
    if archive.objects.is_local or SharedStates.of(settings) is None:
        return None

    def claim(run_id: str) -> AbstractContextManager[bool]:
        return hold_if_shared(settings, f"run/{run_id}", run_id=run_id, unknown=False)

    return claim
