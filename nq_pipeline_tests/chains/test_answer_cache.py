"""Kept answers: what comes back, and what never does."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.chains.answer_cache import AnswerCache, answer_key
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer
from nq_pipeline_tests.testing.cached_answers import ANSWER, FRAME, KEY, USED

MINUTE = 60_000_000_000


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path / "answers")


def keep(cache: AnswerCache, answer: ChainAnswer = ANSWER, expires_in: int = MINUTE) -> None:
    cache.put(KEY, answer, USED, time.time_ns() + expires_in)


def test_hit_is_the_cached_answer_marked_as_cached(cache: AnswerCache) -> None:
    keep(cache)
    found = cache.get("barchart", KEY)
    assert found is not None
    answer, used = found
    assert answer.frame.equals(FRAME) and answer.frame.schema == FRAME.schema
    for name in (one.name for one in fields(answer) if one.name not in ("frame", "cached")):
        assert getattr(answer, name) == getattr(ANSWER, name), name
    assert answer.cached
    assert answer.dropped["never_seen"] == 0
    assert used == USED


def test_an_answer_without_rows_is_kept_too(cache: AnswerCache) -> None:
    keep(cache, replace(ANSWER, frame=SOURCE_CHAIN.empty()))
    found = cache.get("barchart", KEY)
    assert found is not None and dict(found[0].frame.schema) == dict(SOURCE_CHAIN.schema)


def test_other_questions_and_other_vendors_are_misses(cache: AnswerCache) -> None:
    keep(cache)
    assert cache.get("barchart", answer_key({"question": 2})) is None
    assert cache.get("databento", KEY) is None


@pytest.mark.parametrize("expires_in", [0, -1, -MINUTE])
def test_an_answer_past_its_time_is_a_miss(cache: AnswerCache, expires_in: int) -> None:
    keep(cache, expires_in=expires_in)
    assert cache.get("barchart", KEY) is None


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.OK, Outcome.PARTIAL)])
def test_a_failure_cannot_be_kept(cache: AnswerCache, outcome: Outcome) -> None:
    with pytest.raises(ValueError, match=str(outcome)):
        keep(cache, replace(ANSWER, outcome=outcome))
    assert cache.get("barchart", KEY) is None


def test_a_newer_answer_takes_the_place_of_the_older(cache: AnswerCache) -> None:
    keep(cache)
    keep(cache, replace(ANSWER, frame=FRAME.head(3)))
    found = cache.get("barchart", KEY)
    assert found is not None and found[0].frame.height == 3


# ── damage ──────────────────────────────────────────────────────────────────────────────────────


def the(cache: AnswerCache, suffix: str) -> Path:
    (path,) = cache.root.glob(f"*{suffix}")
    return path


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("left", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_off_is_a_miss(cache: AnswerCache, suffix: str, left: float) -> None:
    keep(cache)
    path = the(cache, suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left)])
    assert cache.get("barchart", KEY) is None


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_file_that_is_gone_is_a_miss(cache: AnswerCache, suffix: str) -> None:
    keep(cache)
    the(cache, suffix).unlink()
    assert cache.get("barchart", KEY) is None


@given(position=st.integers(0), bit=st.integers(0, 7))
def test_one_flipped_bit_of_the_rows_is_a_miss(cache: AnswerCache, position: int, bit: int) -> None:
    keep(cache)
    path = the(cache, ".parquet")
    body = bytearray(path.read_bytes())
    body[position % len(body)] ^= 1 << bit
    path.write_bytes(body)
    assert cache.get("barchart", KEY) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(head=JSON)
def test_any_json_in_the_place_of_a_head_is_a_miss(cache: AnswerCache, head: object) -> None:
    keep(cache)
    the(cache, ".json").write_bytes(orjson.dumps(head))
    assert cache.get("barchart", KEY) is None


@given(name=st.sampled_from(["frame", "outcome", "series", "dropped", "version", "expires"]), value=JSON)
def test_head_with_a_wrong_value_never_crashes(cache: AnswerCache, name: str, value: object) -> None:
    keep(cache)
    path = the(cache, ".json")
    head = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**head, name: value}))
    found = cache.get("barchart", KEY)
    assert found is None or found[0].frame.equals(FRAME)


def test_a_head_that_points_elsewhere_reads_nothing_there(cache: AnswerCache, tmp_path: Path) -> None:
    keep(cache)
    FRAME.write_parquet(tmp_path / "elsewhere.parquet")
    path = the(cache, ".json")
    head = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**head, "frame": "../elsewhere.parquet"}))
    assert cache.get("barchart", KEY) is None


def test_rows_of_another_version_of_the_schema_are_a_miss(cache: AnswerCache) -> None:
    keep(cache)
    path = the(cache, ".json")
    head = orjson.loads(path.read_bytes())
    assert head["version"] == SOURCE_CHAIN.version
    path.write_bytes(orjson.dumps({**head, "version": SOURCE_CHAIN.version + 1}))
    assert cache.get("barchart", KEY) is None


# ── many writers, many days ─────────────────────────────────────────────────────────────────────


def test_concurrent_writers_leave_a_whole_answer(cache: AnswerCache) -> None:
    sizes = (5, 40)

    def write(rows: int) -> None:
        answer = replace(ANSWER, frame=FRAME.head(rows))
        for _ in range(40):
            AnswerCache(cache.root).put(KEY, answer, USED, time.time_ns() + MINUTE)

    keep(cache, replace(ANSWER, frame=FRAME.head(sizes[0])))
    writers = [threading.Thread(target=write, args=(rows,)) for rows in sizes]
    for writer in writers:
        writer.start()
    seen: Counter[int] = Counter()
    while any(writer.is_alive() for writer in writers):
        found = cache.get("barchart", KEY)
        assert found is not None, "a miss while an answer is kept"
        assert found[0].frame.equals(FRAME.head(found[0].frame.height))
        seen[found[0].frame.height] += 1
    assert set(seen) <= set(sizes) and seen.total() > 0


def test_what_is_a_day_old_is_swept_when_something_is_kept(cache: AnswerCache) -> None:
    keep(cache)
    left = cache.root / ".left-by-a-crash.tmp"
    left.write_bytes(b"half")
    old = [*cache.root.glob("*"), left]
    for path in old:
        os.utime(path, (time.time() - 90_000,) * 2)
    cache.put(
        answer_key({"question": 2}), replace(ANSWER, frame=FRAME.head(2)), USED, time.time_ns() + MINUTE
    )
    assert not [path for path in old if path.exists()]
    assert cache.get("barchart", answer_key({"question": 2})) is not None


# ── the question's digest ───────────────────────────────────────────────────────────────────────


def test_the_digest_does_not_depend_on_the_order_of_its_parts() -> None:
    assert answer_key({"a": 1, "b": [1, 2]}) == answer_key({"b": [1, 2], "a": 1})


@given(JSON, JSON)
def test_different_parts_have_different_digests(one: object, other: object) -> None:
    same = orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)
    assert (answer_key({"x": one}) == answer_key({"x": other})) is same


def test_the_frames_of_the_tests_have_rows() -> None:
    assert FRAME.height > 40 and isinstance(FRAME, pl.DataFrame)
