"""The files of a batch job: data in the requested encoding and split, and metadata about it.

Data is split by day, week, month or year (UTC; a week starts on Sunday), as DBN, CSV or JSON, plain
or in zstd. The job also has files with the days' condition, its description, its symbols and a manifest.
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

import orjson
import zstandard

from nq_pipeline.clock import from_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.instruments import sessions_between
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.vendors.databento.account import SubmittedJob
from nq_pipeline.sandbox.vendors.databento.history import (
    encode_dbn,
    mapped_intervals,
    query_records,
    symbology_answer,
)
from nq_pipeline.sandbox.vendors.databento.request import DATASET, RangeQuery, RequestRefused, midnight_ns

# The first of each is the default.
ENCODINGS = ("dbn", "csv", "json")
COMPRESSIONS = ("zstd", "none")
SPLITS = ("day", "week", "month", "year", "none")


def job_files(job: SubmittedJob, scenario: Scenario) -> dict[str, bytes]:
    """The files of a job by name, built once per fault; raises RequestRefused until the job is done."""
    if job.details["state"] != "done":
        raise RequestRefused(422, "batch_job_not_done", "The job is not done.")
    if scenario.fault not in job.files:
        job.files[scenario.fault] = _build_files(job, replace(scenario, market=job.market))
    return job.files[scenario.fault]


def _build_files(job: SubmittedJob, scenario: Scenario) -> dict[str, bytes]:
    query, details, left = job.query, job.details, job.query.limit
    metadata = {"version": 1, "job_id": details["id"], "dataset": DATASET, "query": details}
    files = {
        "condition.json": orjson.dumps(day_conditions(query.start, query.end)),
        "metadata.json": orjson.dumps(metadata),
        "symbology.json": orjson.dumps(_symbology(query, scenario)),
    }
    extension = details["encoding"] + (".zst" if details["compression"] == "zstd" else "")
    for label, part in _split_query(query, details["split_duration"]):
        part = replace(part, limit=left)
        try:
            records, _ = query_records(part, scenario)
        except RequestRefused:  # nothing is listed on that day
            continue
        files[f"glbx-mdp3-{label}.{query.schema}.{extension}"] = _encode(part, details, scenario)
        left = None if left is None else left - len(records)
    manifest = {"job_id": details["id"], "files": describe_files(files)}
    return files | {"manifest.json": orjson.dumps(manifest)}


def describe_files(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Name, size and digest of each file."""
    return [
        {"filename": name, "size": len(content), "hash": f"sha256:{hashlib.sha256(content).hexdigest()}"}
        for name, content in files.items()
    ]


def zip_files(files: dict[str, bytes]) -> bytes:
    """All files as one ZIP archive."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def day_conditions(start: int, end: int) -> list[dict[str, str]]:
    """The condition of each UTC day in [start, end) on which the market trades."""
    return [
        {"date": day.isoformat(), "condition": "available", "last_modified_date": day.isoformat()}
        for begin in range(start // DAY_NS * DAY_NS, end, DAY_NS)
        if sessions_between(begin, begin + DAY_NS)
        for day in [from_ns(begin).date()]
    ]


def _split_query(query: RangeQuery, split: str) -> Iterator[tuple[str, RangeQuery]]:
    """The label and the query of each data file."""
    days = [from_ns(begin).date() for begin in range(query.start // DAY_NS * DAY_NS, query.end, DAY_NS)]
    for _, group in groupby(days, lambda day: _period_start(day, split)):
        first, *rest = group
        last = rest[-1] if rest else first
        begin, end = midnight_ns(first), midnight_ns(last) + DAY_NS
        label = f"{first:%Y%m%d}" if first == last else f"{first:%Y%m%d}-{last:%Y%m%d}"
        yield label, replace(query, start=max(query.start, begin), end=min(query.end, end))


def _period_start(day: date, split: str) -> date:
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


def _encode(query: RangeQuery, details: dict[str, Any], scenario: Scenario) -> bytes:
    plain = encode_dbn(query, scenario)
    if details["encoding"] != "dbn":
        plain = _transcode(plain, details)
    return zstandard.compress(plain, 1) if details["compression"] == "zstd" else plain


def _transcode(plain: bytes, details: dict[str, Any]) -> bytes:
    """DBN as CSV or JSON."""
    import databento_dbn as dbn

    text = BytesIO()
    transcoder = dbn.Transcoder(
        text,
        dbn.Encoding.from_str(details["encoding"]),
        dbn.Compression.from_str("none"),
        pretty_px=details["pretty_px"],
        pretty_ts=details["pretty_ts"],
        map_symbols=details["map_symbols"],
        has_metadata=True,
    )
    transcoder.write(plain)
    transcoder.finish()
    return text.getvalue()


def _symbology(query: RangeQuery, scenario: Scenario) -> dict[str, Any]:
    """The symbols of the job in the form of `symbology.resolve`."""
    _, instruments = query_records(query, scenario)
    first, last = (from_ns(edge).date() for edge in (query.start, query.end - 1))
    intervals = mapped_intervals(instruments, query)
    stypes = query.stype_in, query.stype_out
    return symbology_answer(intervals, query.symbols, stypes, first, last + timedelta(days=1))
