"""The rate limiter's memory on disk: a damaged file is dropped and recreated."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nq_pipeline.transport.http import open_http
from nq_pipeline.transport.policy import Policy
from nq_pipeline_tests.testing.http_server import Answer, serve

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "garbage": lambda content: os.urandom(len(content)),
    "cut": lambda content: content[: len(content) // 2],
    "a hole": lambda content: content[:4096] + b"\xff" * (len(content) - 4096),
    "text": lambda content: b"no database",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_rate_limit_file_is_recreated(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    def get() -> bytes:
        session = open_http(
            "shop", Policy(per_minute=1000), state_dir=tmp_path, remaining=lambda: 10, cookies=set()
        )
        try:
            return session.get(f"{server.url}/x", timeout=10).content
        finally:
            session.close()

    with serve(lambda request: Answer(b"body")) as server:
        assert get() == b"body"
        path = tmp_path / "shop-rate.sqlite"
        content = path.read_bytes()
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        path.write_bytes(damage(content))
        assert [get(), get()] == [b"body", b"body"]
