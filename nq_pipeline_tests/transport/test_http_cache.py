"""A damaged cache is a miss: the file is made anew and nobody hears an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nq_pipeline.transport.http import session
from nq_pipeline_tests.testing.http_server import Answer, serve

SPOILS = {
    "empty": lambda content: b"",
    "garbage": lambda content: os.urandom(len(content)),
    "cut": lambda content: content[: len(content) // 2],
    "a hole": lambda content: content[:4096] + b"\xff" * (len(content) - 4096),
    "text": lambda content: b"no database",
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", ["shop-http.sqlite", "shop-rate.sqlite"])
def test_a_damaged_cache_is_dropped_and_made_anew(tmp_path: Path, name: str, spoil: str) -> None:
    asked: list[str] = []

    def get() -> bool:
        made = session(
            "shop", per_minute=1000, spacing_s=0, state_dir=tmp_path, pinned=None,
            remaining=lambda: 10, max_bytes=10_000, secrets=[], configured=[],
        )  # fmt: skip
        try:
            response = made.get(f"{server.url}/x", expire_after=60)
            assert response.content == b'"body"'
            return bool(response.from_cache)  # type: ignore[attr-defined]
        finally:
            made.close()

    with serve(lambda request: asked.append(request.path) or Answer(b'"body"')) as server:
        assert [get(), get()] == [False, True]
        path = tmp_path / name
        content = path.read_bytes()
        for rest in ("-wal", "-shm"):
            path.with_name(name + rest).unlink(missing_ok=True)
        path.write_bytes(SPOILS[spoil](content))
        get()
        assert get() and len(asked) <= 2
