"""Batch jobs of Databento's stand-in: submitted and billed once, done a moment later, downloaded at will.

A job's files are those of `databento_package`, one by one or as an archive. Downloads of one answer
to `Range`, as those of the vendor do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.vendors.databento import admitted, answered, entitled
from nq_pipeline.sandbox.vendors.databento_account import Account, SubmittedJob
from nq_pipeline.sandbox.vendors.databento_history import recorded
from nq_pipeline.sandbox.vendors.databento_package import (
    COMPRESSIONS,
    ENCODINGS,
    SPLITS,
    listing,
    package,
    zipped,
)
from nq_pipeline.sandbox.vendors.databento_request import (
    DATASET,
    USD_PER_GB,
    RequestRefused,
    instant_of,
    iso,
    question_of,
)
from nq_pipeline.sandbox.vendors.faults import WorldOf, serve

KEPT = timedelta(days=30)
STATES = ("queued", "processing", "done")


def routes(world_of: WorldOf) -> list[BaseRoute]:
    listed = {
        "batch.submit_job": ("POST", submit_job),
        "batch.list_jobs": ("GET", list_jobs),
        "batch.get_job_details": ("GET", get_job_details),
        "batch.list_files": ("GET", list_files),
        "batch.download": ("GET", download_all),
    }
    return [
        *(
            Route(f"/v0/{name}", serve(admitted(name, answer), world_of), methods=[verb])
            for name, (verb, answer) in listed.items()
        ),
        Route(
            "/v0/batch/download/{job_id}/{filename}",
            serve(admitted("batch.download", download), world_of),
            methods=["GET"],
        ),
    ]


def submit_job(request: Request, asked: Mapping[str, str], world: Scenario, account: Account) -> Response:
    """Queue a job and bill it."""
    entitled(world)
    question, form = question_of(asked, world), _form(asked)
    array, _ = recorded(question, world)
    now = datetime.now(UTC)  # jobs are made in real time, whatever market they are of
    seed = f"{len(account.jobs)}{sorted(asked.items())}".encode()
    job_id = f"GLBX-{now:%Y%m%d}-{hashlib.sha256(seed).hexdigest()[:10].upper()}"
    details: dict[str, Any] = {
        "id": job_id,
        "user_id": "SANDBOX",
        "cost_usd": array.nbytes / 2**30 * USD_PER_GB[question.schema],
        "dataset": DATASET,
        "symbols": ",".join(question.symbols),
        "stype_in": question.stype_in,
        "stype_out": question.stype_out,
        "schema": question.schema,
        "start": iso(question.start),
        "end": iso(question.end),
        "limit": question.limit,
        **form,
        "delivery": "download",
        "record_count": len(array),
        "billed_size": array.nbytes,
        "state": STATES[0],
        "ts_received": iso(to_ns(now)),
        "ts_expiration": iso(to_ns(now + KEPT)),
    }
    account.jobs[job_id] = SubmittedJob(details, world.market)
    account.bill("batch.submit_job", array.nbytes)
    return answered(details)


def _form(asked: Mapping[str, str]) -> dict[str, Any]:
    """How the files are to be written."""
    choices = {"encoding": ENCODINGS, "compression": ("zstd", *COMPRESSIONS), "split_duration": SPLITS}
    form: dict[str, Any] = {name: asked.get(name, known[0]) for name, known in choices.items()}
    for name, known in choices.items():
        if form[name] not in known:
            raise RequestRefused(
                422, "batch_form_invalid", f"{name} is one of {', '.join(sorted(set(known)))}."
            )
    flags = {
        name: asked.get(name) == "True" for name in ("pretty_px", "pretty_ts", "map_symbols", "split_symbols")
    }
    if flags["split_symbols"] or "split_size" in asked:
        raise RequestRefused(
            422, "batch_form_invalid", "Files split by symbol or by size are not available here."
        )
    return form | flags | {"split_size": None}


def list_jobs(request: Request, asked: Mapping[str, str], world: Scenario, account: Account) -> Response:
    """The jobs of the account; each look brings them on by one state."""
    states = asked.get("states", ",".join(STATES)).split(",")
    since = instant_of(asked["since"]) if "since" in asked else 0
    found = [_looked_at(job) for job in account.jobs.values()]
    shown = ("id", "state", "ts_received") if asked.get("short") == "True" else None
    return answered(
        [
            {name: one[name] for name in shown or one}
            for one in found
            if one["state"] in states and instant_of(one["ts_received"][:26]) >= since
        ]
    )


def get_job_details(
    request: Request, asked: Mapping[str, str], world: Scenario, account: Account
) -> Response:
    return answered(_looked_at(_job(asked.get("job_id", ""), account)))


def list_files(request: Request, asked: Mapping[str, str], world: Scenario, account: Account) -> Response:
    """The files of a job that is done, and where they are."""
    job = _job(asked.get("job_id", ""), account)
    base, job_id = str(request.url).partition("/v0/")[0], job.details["id"]
    return answered(
        [
            {
                **file,
                "urls": {
                    "https": f"{base}/v0/batch/download/{job_id}/{file['filename']}",
                    "ftp": f"ftp://127.0.0.1/{job_id}/{file['filename']}",
                },
            }
            for file in listing(package(job, world))
        ]
    )


def download_all(request: Request, asked: Mapping[str, str], world: Scenario, account: Account) -> Response:
    """All files of a job as a ZIP archive."""
    whole = zipped(package(_job(asked.get("job_id", ""), account), world))
    return Response(whole, media_type="application/zip")


def download(request: Request, asked: Mapping[str, str], world: Scenario, account: Account) -> Response:
    """One file of a job, or the part of it that `Range` names."""
    job = _job(request.path_params["job_id"], account)
    content = package(job, world).get(request.path_params["filename"])
    if content is None:
        raise RequestRefused(404, "batch_file_not_found", "There is no such file.")
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if span is None:
        return Response(content, media_type="application/octet-stream")
    first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
    headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Response(content[first : last + 1], 206, headers, media_type="application/octet-stream")


def _job(job_id: str, account: Account) -> SubmittedJob:
    if job_id not in account.jobs:
        raise RequestRefused(404, "batch_job_not_found", "There is no such job.")
    return account.jobs[job_id]


def _looked_at(job: SubmittedJob) -> dict[str, Any]:
    job.details["state"] = STATES[min(job.looks, 2)]
    job.looks += 1
    return job.details
