"""Dagster's web server of `nq ui` answers its own pages, and no page of another site."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import pytest
from dagster_webserver.webserver import DagsterWebserver
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Scope

from nq_pipeline.orchestration.guarded_dagster import guard_web_server, start_guarded_server

LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:3000"}, 200),
        ("GET", LINK, 200),
        ("POST", LINK | {"Origin": "http://evil.example"}, 403),
        ("GET", LINK | {"Sec-Fetch-Dest": "iframe"}, 403),
        (
            "GET",
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
            403,
        ),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {"Origin": "http://127.0.0.1:8000"}, 403),
        ("GET", {"Host": "rebound.example"}, 421),
    ],
)
def test_a_mutation_of_another_site_is_refused(
    monkeypatch: pytest.MonkeyPatch, method: str, headers: dict[str, str], status: int
) -> None:
    monkeypatch.setattr(DagsterWebserver, "build_middleware", DagsterWebserver.build_middleware)
    guard_web_server()
    server: Any = object.__new__(DagsterWebserver)
    routes = [Route("/graphql", lambda _: PlainTextResponse("launched"), methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=server.build_middleware())
    sent = {"Host": "127.0.0.1:3000"} | headers
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": "/graphql",
        "query_string": b"query=mutation",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
    }
    answer: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        answer.append(message)

    asyncio.run(app(scope, receive, send))
    assert answer[0]["status"] == status


def test_dagster_dev_starts_the_guarded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    dev: Any = import_module("dagster._cli.dev")
    monkeypatch.setattr(dev, "open_ipc_subprocess", lambda command, **_: commands.append(command))
    start_guarded_server()
    dev.open_ipc_subprocess(["python", "-m", "dagster_webserver", "--port", "1"], pass_fds=[])
    assert commands == [["python", "-m", "nq_pipeline.orchestration.guarded_dagster", "--port", "1"]]
