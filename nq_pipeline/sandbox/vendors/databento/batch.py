"""Batch jobs of Databento's stand-in: submitted and billed once, done two polls later, then downloadable.

`batch_files` builds the files of a job. They download one by one, with `Range`, or as one archive.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.vendors.databento.access import api_route, require_entitlement
from nq_pipeline.sandbox.vendors.databento.account import Account, SubmittedJob
from nq_pipeline.sandbox.vendors.databento.batch_files import (
    COMPRESSIONS,
    ENCODINGS,
    SPLITS,
    describe_files,
    job_files,
    zip_files,
)
from nq_pipeline.sandbox.vendors.databento.history import query_records
from nq_pipeline.sandbox.vendors.databento.request import (
    DATASET,
    USD_PER_GB,
    Params,
    RequestRefused,
    iso,
    parse_instant,
    parse_query,
)
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, json_response

EXPIRES_AFTER = timedelta(days=30)
STATES = ("queued", "processing", "done")


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
    now = datetime.now(UTC)  # jobs are submitted in real time, whatever the market's clock
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
        raise RequestRefused(
            422, "batch_form_invalid", "Files split by symbol or by size are not available here."
        )
    return form | {"split_size": None}


def list_jobs(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """The account's jobs; each poll advances them by one state."""
    states = params.get("states", ",".join(STATES)).split(",")
    since = parse_instant(params["since"]) if "since" in params else 0
    jobs = [_poll(job) for job in account.jobs.values()]
    columns = ("id", "state", "ts_received") if params.get("short") == "True" else None
    return json_response(
        [
            {name: job[name] for name in columns or job}
            for job in jobs
            if job["state"] in states and parse_instant(job["ts_received"][:26]) >= since
        ]
    )


def get_job_details(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    return json_response(_poll(_find_job(params.get("job_id", ""), account)))


def list_files(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """The files of a job that is done, with their addresses."""
    job = _find_job(params.get("job_id", ""), account)
    base, job_id = str(request.url).partition("/v0/")[0], job.details["id"]

    def urls(name: str) -> dict[str, str]:
        return {
            "https": f"{base}/v0/batch/download/{job_id}/{name}",
            "ftp": f"ftp://127.0.0.1/{job_id}/{name}",
        }

    files = describe_files(job_files(job, scenario))
    return json_response([{**file, "urls": urls(file["filename"])} for file in files])


def download_archive(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """All files of a job as a ZIP archive."""
    job = _find_job(params.get("job_id", ""), account)
    return Response(zip_files(job_files(job, scenario)), media_type="application/zip")


def download_file(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """One file of a job, or the part of it that `Range` names."""
    job = _find_job(request.path_params["job_id"], account)
    content = job_files(job, scenario).get(request.path_params["filename"])
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
