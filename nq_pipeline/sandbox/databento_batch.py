"""Batch jobs of Databento's stand-in: submitted and billed once, done a moment later, downloaded at will.

A job's file is split by UTC day. Downloads answer to `Range`, as those of the vendor do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.databento import (
    DATASET,
    USD_PER_GB,
    Question,
    Refused,
    admitted,
    answered,
    encoded,
    entitled,
    instant_of,
    iso,
    question_of,
    recorded,
)
from nq_pipeline.sandbox.databento_account import Account, Job
from nq_pipeline.sandbox.faults import WorldOf, serve
from nq_pipeline.sandbox.globex import DAY_NS
from nq_pipeline.sandbox.world import World

KEPT = timedelta(days=30)
STATES = ("queued", "processing", "done")


def routes(world_of: WorldOf) -> list[BaseRoute]:
    listed = {
        "batch.submit_job": ("POST", submit_job),
        "batch.list_jobs": ("GET", list_jobs),
        "batch.get_job_details": ("GET", get_job_details),
        "batch.list_files": ("GET", list_files),
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


def submit_job(request: Request, asked: Mapping[str, str], world: World, account: Account) -> Response:
    """Queue a job and bill it."""
    entitled(world)
    question = question_of(asked, world)
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
        "stype_out": "instrument_id",
        "schema": question.schema,
        "start": iso(question.start),
        "end": iso(question.end),
        "limit": question.limit,
        "encoding": "dbn",
        "compression": "zstd",
        "split_duration": "day",
        "delivery": "download",
        "record_count": len(array),
        "billed_size": array.nbytes,
        "state": STATES[0],
        "ts_received": iso(to_ns(now)),
        "ts_expiration": iso(to_ns(now + KEPT)),
    }
    account.jobs[job_id] = Job(details, world.market)
    account.bill("batch.submit_job", array.nbytes)
    return answered(details)


def list_jobs(request: Request, asked: Mapping[str, str], world: World, account: Account) -> Response:
    """The jobs of the account; each look brings them on by one state."""
    states = asked.get("states", ",".join(STATES)).split(",")
    since = instant_of(asked["since"]) if "since" in asked else 0
    found = [_looked_at(job) for job in account.jobs.values()]
    return answered(
        [one for one in found if one["state"] in states and instant_of(one["ts_received"][:26]) >= since]
    )


def get_job_details(request: Request, asked: Mapping[str, str], world: World, account: Account) -> Response:
    return answered(_looked_at(_job(asked.get("job_id", ""), account)))


def list_files(request: Request, asked: Mapping[str, str], world: World, account: Account) -> Response:
    """A file for each UTC day, and one about the days."""
    job = _job(asked.get("job_id", ""), account)
    base = str(request.url).partition("/v0/")[0]
    files = {"condition.json": b"[]\n", **_files(job, world)}
    return answered(
        [
            {
                "filename": name,
                "size": len(content),
                "hash": f"sha256:{hashlib.sha256(content).hexdigest()}",
                "urls": {
                    "https": f"{base}/v0/batch/download/{job.details['id']}/{name}",
                    "ftp": f"ftp://127.0.0.1/{job.details['id']}/{name}",
                },
            }
            for name, content in files.items()
        ]
    )


def download(request: Request, asked: Mapping[str, str], world: World, account: Account) -> Response:
    job = _job(request.path_params["job_id"], account)
    content = _files(job, world).get(request.path_params["filename"])
    if content is None:
        raise Refused(404, "batch_file_not_found", "There is no such file.")
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if span is None:
        return Response(content, media_type="application/octet-stream")
    first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
    headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Response(content[first : last + 1], 206, headers, media_type="application/octet-stream")


def _job(job_id: str, account: Account) -> Job:
    if job_id not in account.jobs:
        raise Refused(404, "batch_job_not_found", "There is no such job.")
    return account.jobs[job_id]


def _looked_at(job: Job) -> dict[str, Any]:
    job.details["state"] = STATES[min(job.looks, 2)]
    job.looks += 1
    return job.details


def _files(job: Job, world: World) -> dict[str, bytes]:
    """The files of a job that is done, by name."""
    if job.details["state"] != "done":
        raise Refused(422, "batch_job_not_done", "The job is not done.")
    told = job.details
    whole = Question(
        schema=told["schema"],
        symbols=tuple(told["symbols"].split(",")),
        stype_in=told["stype_in"],
        start=_ns(told["start"]),
        end=_ns(told["end"]),
        limit=told["limit"],
    )
    of_job = replace(world, market=job.market)
    files = {}
    for midnight in range(whole.start // DAY_NS * DAY_NS, whole.end, DAY_NS):
        day = replace(whole, start=max(whole.start, midnight), end=min(whole.end, midnight + DAY_NS))
        name = f"glbx-mdp3-{iso(midnight)[:10].replace('-', '')}.{whole.schema}.dbn.zst"
        try:
            files[name] = encoded(day, of_job)
        except Refused:  # a day on which nothing is listed
            continue
    return files


def _ns(text: str) -> int:
    import numpy as np

    return int(np.datetime64(text.removesuffix("Z"), "ns").astype(np.int64))
