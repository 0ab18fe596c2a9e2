"""Batch jobs of Databento's stand-in: submitted and billed once, done two polls later, then downloadable.

Data is split by day, week, month or year (UTC; a week starts on Sunday), as DBN, CSV or JSON, plain or in
zstd. Files with the days' condition, the job's description, its symbols and a manifest come with it. All
of them download one by one, with `Range`, or as one archive.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from io import BytesIO
from itertools import groupby
from typing import Any

import orjson
import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from nq_pipeline.clock import from_ns, real_now, to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.instruments import sessions_between
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.vendors.databento.account import (
    Account,
    SubmittedJob,
    api_route,
    require_entitlement,
)
from nq_pipeline.sandbox.vendors.databento.history import (
    encode_dbn,
    mapped_intervals,
    query_records,
    symbology_answer,
)
from nq_pipeline.sandbox.vendors.databento.request import (
    DATASET,
    USD_PER_GB,
    Params,
    RangeQuery,
    RequestRefused,
    iso,
    midnight_ns,
    parse_instant,
    parse_query,
)
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, json_response

EXPIRES_AFTER = timedelta(days=30)
STATES = ("queued", "processing", "done")
# The first of each is the default.
ENCODINGS = ("dbn", "csv", "json")
COMPRESSIONS = ("zstd", "none")
SPLITS = ("day", "week", "month", "year", "none")


def batch_routes(scenario_of: ScenarioOf) -> list[BaseRoute]:
    gets = {
        "batch.list_jobs": list_jobs,
        "batch.get_job_details": get_job_details,
        "batch.list_files": list_files,
        "batch.download": download_archive,
    }
    return [
        api_route("POST", "batch.submit_job", submit_job, scenario_of),
        *(api_route("GET", name, handler, scenario_of) for name, handler in gets.items()),
        api_route("GET", "batch.download", download_file, scenario_of, "batch/download/{job_id}/{filename}"),
    ]


def submit_job(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """Queue a job and bill it."""
    require_entitlement(scenario)
    query, form = parse_query(params, scenario), _parse_form(params)
    array, _ = query_records(query, scenario)
    now = real_now()  # jobs are submitted in real time, whatever the market's clock
    seed = f"{len(account.jobs)}{sorted(params.items())}".encode()
    job_id = f"GLBX-{now:%Y%m%d}-{hashlib.sha256(seed).hexdigest()[:10].upper()}"
    details: dict[str, Any] = {
        "id": job_id,
        "user_id": "SANDBOX",
        "cost_usd": array.nbytes / 2**30 * USD_PER_GB[query.schema],
        "dataset": DATASET,
        "symbols": ",".join(query.symbols),
        "stype_in": query.stype_in,
        "stype_out": query.stype_out,
        "schema": query.schema,
        "start": iso(query.start),
        "end": iso(query.end),
        "limit": query.limit,
        **form,
        "delivery": "download",
        "record_count": len(array),
        "billed_size": array.nbytes,
        "state": STATES[0],
        "ts_received": iso(to_ns(now)),
        "ts_expiration": iso(to_ns(now + EXPIRES_AFTER)),
    }
    account.jobs[job_id] = SubmittedJob(details, query, scenario.market)
    account.bill("batch.submit_job", array.nbytes)
    return json_response(details)


def _parse_form(params: Params) -> dict[str, Any]:
    """How the files are to be written."""
    choices = {"encoding": ENCODINGS, "compression": COMPRESSIONS, "split_duration": SPLITS}
    form: dict[str, Any] = {name: params.get(name, allowed[0]) for name, allowed in choices.items()}
    for name, allowed in choices.items():
        if form[name] not in allowed:
            raise RequestRefused(422, "batch_form_invalid", f"{name} is one of {', '.join(sorted(allowed))}.")
    for name in ("pretty_px", "pretty_ts", "map_symbols", "split_symbols"):
        form[name] = params.get(name) == "True"
    if form["split_symbols"] or "split_size" in params:
        raise RequestRefused(422, "batch_form_invalid", "Files are not split by symbol or size here.")
    return form | {"split_size": None}


def list_jobs(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """The account's jobs; each poll advances them by one state."""
    states = params.get("states", ",".join(STATES)).split(",")
    since = parse_instant(params["since"]) if "since" in params else 0
    jobs = [_poll(job) for job in account.jobs.values()]
    shown = [
        job for job in jobs if job["state"] in states and parse_instant(job["ts_received"][:26]) >= since
    ]
    if params.get("short") == "True":
        shown = [{name: job[name] for name in ("id", "state", "ts_received")} for job in shown]
    return json_response(shown)


def get_job_details(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    return json_response(_poll(_find_job(params.get("job_id", ""), account)))


def list_files(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """The files of a job that is done, with their addresses."""
    job = _find_job(params.get("job_id", ""), account)
    base, job_id = str(request.url).partition("/v0/")[0], job.details["id"]
    files = _describe_files(_files_of(job, scenario))
    for file in files:
        path = f"{job_id}/{file['filename']}"
        file["urls"] = {"https": f"{base}/v0/batch/download/{path}", "ftp": f"ftp://127.0.0.1/{path}"}
    return json_response(files)


def download_archive(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """All files of a job as a ZIP archive."""
    files, buffer = _files_of(_find_job(params.get("job_id", ""), account), scenario), BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return Response(buffer.getvalue(), media_type="application/zip")


def download_file(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """One file of a job, or the part of it that `Range` names."""
    job = _find_job(request.path_params["job_id"], account)
    content = _files_of(job, scenario).get(request.path_params["filename"])
    if content is None:
        raise RequestRefused(404, "batch_file_not_found", "There is no such file.")
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if span is None:
        return Response(content, media_type="application/octet-stream")
    first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
    headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Response(content[first : last + 1], 206, headers, media_type="application/octet-stream")


def _find_job(job_id: str, account: Account) -> SubmittedJob:
    if job_id not in account.jobs:
        raise RequestRefused(404, "batch_job_not_found", "There is no such job.")
    return account.jobs[job_id]


def _poll(job: SubmittedJob) -> dict[str, Any]:
    """The job's description after its state has advanced."""
    job.details["state"] = STATES[min(job.polls, 2)]
    job.polls += 1
    return job.details


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def _files_of(job: SubmittedJob, scenario: Scenario) -> dict[str, bytes]:
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
        files[f"glbx-mdp3-{label}.{query.schema}.{extension}"] = _encode(encode_dbn(part, scenario), details)
        left = None if left is None else left - len(records)
    manifest = {"job_id": details["id"], "files": _describe_files(files)}
    return files | {"manifest.json": orjson.dumps(manifest)}


def _describe_files(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"filename": name, "size": len(content), "hash": f"sha256:{hashlib.sha256(content).hexdigest()}"}
        for name, content in files.items()
    ]


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


def _encode(content: bytes, details: dict[str, Any]) -> bytes:
    """DBN in the encoding and compression of a job."""
    import databento_dbn as dbn

    if details["encoding"] != "dbn":
        text = BytesIO()
        transcoder = dbn.Transcoder(
            text,
            dbn.Encoding.from_str(details["encoding"]),
            dbn.Compression.from_str("none"),
            **{name: details[name] for name in ("pretty_px", "pretty_ts", "map_symbols")},
            has_metadata=True,
        )
        transcoder.write(content)
        transcoder.finish()
        content = text.getvalue()
    return zstandard.compress(content, 1) if details["compression"] == "zstd" else content


def _symbology(query: RangeQuery, scenario: Scenario) -> dict[str, Any]:
    """The symbols of the job in the form of `symbology.resolve`."""
    _, instruments = query_records(query, scenario)
    first, last = (from_ns(edge).date() for edge in (query.start, query.end - 1))
    intervals = mapped_intervals(instruments, query)
    stypes = query.stype_in, query.stype_out
    return symbology_answer(intervals, query.symbols, stypes, first, last + timedelta(days=1))
