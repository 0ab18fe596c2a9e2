"""Databento's stand-in as a healthy vendor, one server for all tests that want its bytes."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Mapping
from functools import cache, lru_cache
from urllib.parse import urlencode

import requests
import uvicorn

from nq_pipeline.sandbox.server import application
from nq_pipeline_tests.testing.http_server import Answer, Asked

NOW = "2025-06-10T15:00:00Z"


@cache
def address() -> str:
    """Where it listens; the server ends with the process."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    server = uvicorn.Server(uvicorn.Config(application({}), log_level="critical", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def relay(asked: Asked, *, now: str = NOW, fault: str = "ok") -> Answer:
    """What the stand-in answers to a request that reached another server."""
    stateless = asked.path.startswith(("/v0/metadata.", "/v0/timeseries."))
    send = _remembered if stateless else _send
    key = asked.headers.get("authorization", "")
    url = f"{address()}/with/now={now};fault={fault}/databento{asked.path}"
    return send(asked.method, url, tuple(asked.query.items()), asked.body, key)


def _send(method: str, url: str, query: tuple[tuple[str, str], ...], body: bytes, key: str) -> Answer:
    reply = requests.request(
        method, url, params=dict(query), data=body, headers={"Authorization": key}, timeout=120
    )
    return Answer(reply.content, reply.status_code, reply.headers["Content-Type"])


_remembered = lru_cache(maxsize=256)(_send)


@cache
def body(path: str, **parameters: str) -> bytes:
    """The body of one POST, e.g. `body("timeseries.get_range", schema="trades", …)`."""
    asked = Asked(
        "POST",
        f"/v0/{path}",
        {},
        _basic("db-test"),
        urlencode({"dataset": "GLBX.MDP3", **parameters}).encode(),
    )
    answer = relay(asked)
    assert answer.status == 200, answer.body
    return answer.body


def _basic(key: str) -> Mapping[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode()}
