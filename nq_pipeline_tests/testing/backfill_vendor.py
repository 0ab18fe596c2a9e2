"""A vendor for backfills: the stand-in's answers, changed on their way as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson

from nq_pipeline.configuration import load
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server, serve

NOW = "2025-06-11T15:00:00Z"
STREAM, SUBMIT = "/v0/timeseries.get_range", "/v0/batch.submit_job"
COUNT, CONDITION = "/v0/metadata.get_record_count", "/v0/metadata.get_dataset_condition"
METERED = (STREAM, SUBMIT)

Change = Callable[[Asked, Answer], Answer]


def refused(case: str, status: int = 422) -> Answer:
    detail = {"case": case, "message": "words", "status_code": status, "docs": "d", "payload": {}}
    return Answer(orjson.dumps({"detail": detail}), status)


def form(asked: Asked) -> dict[str, str]:
    return dict(parse_qsl(asked.body.decode()))


def only(path: str, answer: Change) -> Change:
    """Change the answers to one kind of request."""
    return lambda asked, good: answer(asked, good) if asked.path == path else good


@dataclass
class Vendor:
    """The server that stands before the stand-in, and settings that ask it."""

    server: Server
    data_dir: Path

    def settings(self, **more: Any) -> Settings:
        given: dict[str, Any] = {
            "environment": "live",
            "data_dir": self.data_dir,
            "databento_url": self.server.url,
            "databento_api_key": f"db-{'-'.join(self.data_dir.parts[-3:])}",  # an account of its own
            "now": NOW,
            "backfill_symbols": "Q2B.OPT",
            "http_attempts": 1,
            "http_timeout_s": 120,  # a busy machine is no fault of the vendor
            "budget_daily_usd": Decimal(10),
        }
        return load(**{**given, **more})

    @property
    def metered(self) -> list[dict[str, str]]:
        """The metered questions so far."""
        return [form(asked) for asked in self.server.asked if asked.path in METERED]


@contextmanager
def vendor(data_dir: Path, change: Change = lambda asked, good: good) -> Iterator[Vendor]:
    def answer(asked: Asked) -> Answer:
        good = standin.relay(asked, now=NOW)
        if asked.path == "/v0/batch.list_files":  # the files lie where the list does
            theirs = f"{standin.address()}/with/now={NOW};fault=ok/databento"
            good = replace(
                good, body=good.body.replace(theirs.encode(), f"http://{asked.headers['host']}".encode())
            )
        return change(asked, good)

    with serve(answer) as server:
        yield Vendor(server, data_dir)
