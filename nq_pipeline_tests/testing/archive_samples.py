"""Answers in the raw archive."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from nq_pipeline.lake.archive import RawEntry
from nq_pipeline.lake.tables import FETCHES
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import NOON as MOMENT
from nq_pipeline_tests.testing.lake_samples import DAY as SAMPLE_DAY
from nq_pipeline_tests.testing.lake_samples import NOON as SAMPLE_NOON

DAY = MOMENT.date()
BODY = b'{"data": [1, 2, 3]}'


def raw_entry(body: bytes = BODY, **given: Any) -> RawEntry:
    """An entry of the archive; its attributes by name."""
    return replace(
        RawEntry(
            request_id="r1",
            run_id="run",
            source="barchart",
            operation="chain",
            digest="d" * 64,
            url="http://127.0.0.1/chain",
            base_url="http://127.0.0.1",
            trade_date=SAMPLE_DAY,
            snapshot_ts=SAMPLE_NOON,
            requested_at=SAMPLE_NOON,
            expires=SAMPLE_NOON + 1,
            sha256=hashlib.sha256(body).hexdigest(),
            bytes=len(body),
            status=200,
            parameters={"symbol": "MM1N5"},
            headers={"content-type": "application/json"},
        ),
        **given,
    )


def archive_answer(settings: Settings, request_id: str, *, written: bool = True) -> Path:
    """An answer in the archive, and its row in `fetches` where its run came so far."""
    archive = Workspace.of(settings).archive
    kept = raw_entry(request_id=request_id, digest=request_id * 8, trade_date=DAY)
    archive.put(kept, BODY)
    if written:
        row = {
            "request_id": request_id,
            "run_id": "run",
            "source": "barchart",
            "environment": "sandbox",
            "trade_date": DAY,
            "snapshot_ts": MOMENT,
            "requested_at": MOMENT,
            "operation": "chain",
            "url": "http://127.0.0.1/chain",
            "status": 200,
            "outcome": "ok",
            "detail": None,
            "latency_ms": 1.0,
            "bytes": len(BODY),
            "cache": "miss",
            "cost_usd": 0.0,
            "raw_sha256": kept.sha256,
        }
        frame = pl.DataFrame([row]).cast(dict(FETCHES.empty().schema))  # type: ignore[arg-type]
        Workspace.of(settings).lake.append(FETCHES, frame, run_id="run")
    return settings.environment_dir / "raw" / "barchart" / f"trade_date={DAY}" / f"{request_id}.zst"
