"""What a batch job of Databento's stand-in delivers: data in the encoding asked for, and files about it.

Data is split by day, week, month or year (UTC; a week starts on Sunday), as DBN, CSV or JSON,
plain or in zstd. Beside it lie the days' condition, the job itself, its symbols, and a list of all.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from io import BytesIO
from itertools import groupby
from typing import Any

import numpy as np
import orjson
import zstandard

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.globex import DAY_NS, sessions_of
from nq_pipeline.sandbox.vendors.databento_account import SubmittedJob
from nq_pipeline.sandbox.vendors.databento_history import encoded, named, recorded
from nq_pipeline.sandbox.vendors.databento_request import (
    DATASET,
    Question,
    RequestRefused,
    midnight,
)

ENCODINGS = ("dbn", "csv", "json")
COMPRESSIONS = ("none", "zstd")
SPLITS = ("day", "week", "month", "year", "none")


def package(job: SubmittedJob, world: Scenario) -> dict[str, bytes]:
    """The files of a job that is done, by name; made once, as the world's fault lets them be."""
    if job.details["state"] != "done":
        raise RequestRefused(422, "batch_job_not_done", "The job is not done.")
    if world.fault not in job.packages:
        job.packages[world.fault] = _made(job.details, replace(world, market=job.market))
    return job.packages[world.fault]


def _made(told: dict[str, Any], world: Scenario) -> dict[str, bytes]:
    whole = _question(told)
    left = whole.limit
    files = {
        "condition.json": orjson.dumps(conditions(whole.start, whole.end)),
        "metadata.json": orjson.dumps(
            {"version": 1, "job_id": told["id"], "dataset": DATASET, "query": told}
        ),
        "symbology.json": orjson.dumps(_symbology(whole, world)),
    }
    for label, part in _parts(whole, told["split_duration"]):
        ending = told["encoding"] + (".zst" if told["compression"] == "zstd" else "")
        part = replace(part, limit=left)
        try:
            records, _ = recorded(part, world)
        except RequestRefused:  # a day on which nothing is listed
            continue
        files[f"glbx-mdp3-{label}.{whole.schema}.{ending}"] = _data(part, told, world)
        left = None if left is None else left - len(records)
    return files | {"manifest.json": orjson.dumps({"job_id": told["id"], "files": listing(files)})}


def listing(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Name, size and digest of each file."""
    return [
        {"filename": name, "size": len(content), "hash": f"sha256:{hashlib.sha256(content).hexdigest()}"}
        for name, content in files.items()
    ]


def zipped(files: dict[str, bytes]) -> bytes:
    """All files as one archive."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as whole:
        for name, content in files.items():
            whole.writestr(name, content)
    return archive.getvalue()


def conditions(start: int, end: int) -> list[dict[str, str]]:
    """The condition of each day, UTC, on which the market trades."""
    return [
        {"date": day.isoformat(), "condition": "available", "last_modified_date": day.isoformat()}
        for begin in range(start // DAY_NS * DAY_NS, end, DAY_NS)
        if sessions_of(begin, begin + DAY_NS)
        for day in [from_ns(begin).date()]
    ]


def _question(told: dict[str, Any]) -> Question:
    start, end = (
        int(np.datetime64(told[edge].removesuffix("Z"), "ns").astype(int)) for edge in ("start", "end")
    )
    return Question(
        schema=told["schema"],
        symbols=tuple(told["symbols"].split(",")),
        stype_in=told["stype_in"],
        start=start,
        end=end,
        limit=told["limit"],
        stype_out=told["stype_out"],
    )


def _parts(whole: Question, split: str) -> Iterator[tuple[str, Question]]:
    """The label and the question of each file."""
    days = [from_ns(begin).date() for begin in range(whole.start // DAY_NS * DAY_NS, whole.end, DAY_NS)]
    for _, group in groupby(days, lambda day: _period(day, split)):
        first, *rest = group
        last = rest[-1] if rest else first
        begin, end = to_ns(midnight(first)), to_ns(midnight(last)) + DAY_NS
        label = f"{first:%Y%m%d}" if first == last else f"{first:%Y%m%d}-{last:%Y%m%d}"
        yield label, replace(whole, start=max(whole.start, begin), end=min(whole.end, end))


def _period(day: date, split: str) -> date:
    """The first day of the period that a day is in."""
    match split:
        case "day":
            return day
        case "week":
            return day - timedelta(days=(day.weekday() + 1) % 7)
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)
    return date.min


def _data(part: Question, told: dict[str, Any], world: Scenario) -> bytes:
    plain = encoded(part, world)
    if told["encoding"] != "dbn":
        plain = _as_text(plain, told)
    return zstandard.compress(plain, 1) if told["compression"] == "zstd" else plain


def _as_text(plain: bytes, told: dict[str, Any]) -> bytes:
    import databento_dbn as dbn

    text = BytesIO()
    transcoder = dbn.Transcoder(
        text,
        dbn.Encoding.from_str(told["encoding"]),
        dbn.Compression.from_str("none"),
        pretty_px=told["pretty_px"],
        pretty_ts=told["pretty_ts"],
        map_symbols=told["map_symbols"],
        has_metadata=True,
    )
    transcoder.write(plain)
    transcoder.finish()
    return text.getvalue()


def _symbology(whole: Question, world: Scenario) -> dict[str, Any]:
    """The symbols of the job in the form of `symbology.resolve`."""
    _, instruments = recorded(whole, world)
    first, last = (from_ns(edge).date() for edge in (whole.start, whole.end - 1))
    return {
        "result": {
            symbol: [{"d0": str(begin), "d1": str(until), "s": text} for begin, until, text in spans]
            for symbol, spans in named(instruments, whole.stype_in, whole.stype_out).items()
        },
        "symbols": list(whole.symbols),
        "stype_in": whole.stype_in,
        "stype_out": whole.stype_out,
        "start_date": first.isoformat(),
        "end_date": (last + timedelta(days=1)).isoformat(),
        "partial": [],
        "not_found": [],
        "message": "OK",
        "status": 0,
    }
