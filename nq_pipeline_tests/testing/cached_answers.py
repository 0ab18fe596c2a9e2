"""A vendor's answer to put into the answer cache, also by other processes."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from nq_pipeline.chains.answer_cache import answer_key
from nq_pipeline.chains.request import build_request
from nq_pipeline.configuration import build_settings
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, SeriesAnswer
from nq_pipeline_tests.testing.fake_vendors import chain

REQUEST = build_request(
    build_settings(now=datetime(2025, 6, 10, 15, tzinfo=UTC), horizon_days=2, far_expirations=False),
    run_id="run-1",
)
FRAME = chain(REQUEST, "barchart")
KEY = answer_key({"question": 1})
USED = {"digest": "request"}
ANSWER = ChainAnswer(
    source="barchart",
    outcome=Outcome.OK,
    reason="",
    frame=FRAME,
    series={
        REQUEST.series[0].key: SeriesAnswer(Outcome.OK),
        REQUEST.series[1].key: SeriesAnswer(Outcome.EMPTY, "not listed"),
    },
    dropped=Counter(unknown_symbol=2),
    controls={"rows_equal_total": True},
    refused={"statistics": "not in the plan"},
)
