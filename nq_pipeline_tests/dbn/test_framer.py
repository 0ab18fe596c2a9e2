"""The framer finds what the official decoder finds, whatever the chunks, and says where bytes are none."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import databento_dbn
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.dbn.framer import EVENTS, NEAR_NS, ErrorMsg, Frame, Framer, Head, SystemMsg
from nq_pipeline.dbn.layout import STRUCTS, ZSTD_MAGIC
from nq_pipeline.errors import BadStream
from nq_pipeline_tests.testing.dbn_streams import (
    UNDEF_TIMESTAMP,
    begun,
    frames,
    head,
    mapping,
    official,
    one_frame,
    record,
    trades,
)

TIMES = st.one_of(st.just(UNDEF_TIMESTAMP), st.integers(0, 2**63))
RECORDS = st.lists(st.tuples(st.sampled_from(sorted(STRUCTS)), st.integers(0, 5), TIMES, st.integers(1, 40)))


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """A stream of any version with runs of records of any kind, and places to cut it."""
    version, ts_out = draw(st.sampled_from([1, 2, 3])), draw(st.booleans())
    body = b"".join(
        record(rtype, version, ts_out=ts_out, instrument_id=instrument, ts_event=ts_event) * run
        for rtype, instrument, ts_event, run in draw(RECORDS)
    )
    data = head(version, ts_out=ts_out) + body
    return data, draw(st.lists(st.integers(0, len(data)), max_size=12))


@settings(deadline=None)
@given(streams(), st.booleans())
def test_frames_equal_what_the_official_decoder_finds(
    stream: tuple[bytes, list[int]], compressed: bool
) -> None:
    data, cuts = stream
    sent = zstandard.compress(data) if compressed else data
    assert_equal_to_official(frames(sent, [c for c in cuts if c < len(sent)]), data)


def test_long_runs_and_alternating_kinds_are_framed() -> None:
    body = (
        trades(0, 5_000)
        + record(23, ts_event=1, msg=b"Heartbeat")
        + record(1, instrument_id=3, ts_event=2) * 3_000
        + (trades(5_000, 1) + record(1, instrument_id=4, ts_event=3)) * 700
        + (record(160, ts_event=4) + record(32, ts_event=5)) * 300  # of one length, but not of one kind
        + trades(5_001, 2_000)
    )
    data = head() + body
    for size in (97, 1_000, 4_096, 65_536, len(data)):
        assert_equal_to_official(frames(data, range(0, len(data), size)), data)


def test_recorded_files_are_framed_to_the_official_count(shared: Path) -> None:
    found = sorted((shared / "databento").glob("*.dbn.zst"))
    assert found
    for path in found:
        sent = path.read_bytes()
        plain = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(sent)
        framed = frames(sent, range(0, len(sent), 1_000))
        assert sum(map(len, framed)) == len(official(sent, compressed=True)) > 0, path.name
        assert_equal_to_official(framed, plain)


@settings(deadline=None)
@given(streams(), st.data())
def test_a_record_of_an_unknown_kind_is_refused_where_it_begins(
    stream: tuple[bytes, list[int]], data: st.DataObject
) -> None:
    raw, cuts = stream
    starts = [len(head())]
    for whole in official(raw):
        starts.append(starts[-1] + len(bytes(whole)))
    at = data.draw(st.sampled_from(starts))
    kind = data.draw(st.sampled_from([b"\0\0", b"\x0c\x63", b"\xff\x00", b"\0\x17", b"\x0d\x00"]))
    broken = raw[:at] + kind + raw[at + 2 :]
    framer, seen = Framer(), b""
    with pytest.raises(BadStream) as refused:
        edges = [0, *sorted(cuts), len(broken)]
        for a, b in pairwise(edges):
            for frame in framer.feed(broken[a:b]):
                seen += frame.records
    assert refused.value.offset == framer.offset == at
    assert seen == raw[len(head()) : at], "what was whole before must be given out"
    with pytest.raises(BadStream):
        list(framer.feed(trades(0, 1)))


@settings(deadline=None)
@given(st.binary(max_size=600), st.booleans(), st.integers(1, 64))
def test_arbitrary_bytes_are_framed_or_refused(noise: bytes, after_head: bool, size: int) -> None:
    data = head() + noise if after_head else noise
    framer = Framer()
    try:
        taken = sum(len(f.records) for f in frames(data, range(0, len(data), size), framer))
    except BadStream as refused:
        assert 0 <= refused.offset <= len(data)
    else:
        if framer.head:
            assert len(framer.head.raw) + taken + framer.pending == len(data)
        elif not data.startswith(ZSTD_MAGIC):
            assert framer.pending == len(data)


@settings(deadline=None)
@given(st.binary(min_size=120, max_size=120))
def test_a_head_of_arbitrary_bytes_is_read_or_refused(noise: bytes) -> None:
    try:
        parsed = Head.parse(head()[:8] + noise)
    except BadStream:
        return
    assert parsed.version == 3


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request", "does not begin with DBN"),
        (b"DBN\x04" + head()[4:], "version 4"),
        (b"DBN\x03\xff\xff\xff\x7f", "2,147,483,655 bytes, more than is accepted"),
        (zstandard.compress(b"DBN?")[:-3] + b"\xff\xff\xff", "damaged"),
    ],
)
def test_bytes_that_are_no_dbn_are_refused(start: bytes, sentence: str) -> None:
    with pytest.raises(BadStream, match=sentence):
        frames(start + bytes(2_000))


def test_a_stream_that_began_wrong_stays_refused() -> None:
    framer = Framer()
    for chunk in (b"HTTP/1.1 400 Bad Request", head() + trades(0, 1)):
        with pytest.raises(BadStream, match="does not begin with DBN"):
            list(framer.feed(chunk))


def test_alternating_kinds_are_framed_wherever_the_cut() -> None:
    sound = trades(0, 1) + record(1) + trades(1, 1) + record(160) + record(32) + trades(2, 2)
    for cut in range(len(sound) + 1):
        assert_equal_to_official(frames(head() + sound, [len(head()) + cut]), head() + sound)
    framer = begun()
    assert len(one_frame(sound + b"\0", framer)) == 7
    with pytest.raises(BadStream):
        list(framer.feed(b"\0"))


def test_a_stream_cut_within_a_record_leaves_bytes_pending() -> None:
    framer = begun()
    frame = one_frame(trades(0, 3)[:-1], framer)
    assert (len(frame), framer.pending) == (2, 47)
    assert len(one_frame(trades(2, 1)[-1:], framer)) == 1
    assert framer.pending == 0


def test_the_gateways_own_words_are_decoded_in_order() -> None:
    body = (
        record(23, ts_event=1, msg=b"Subscription request 0 for trades data succeeded", code=1)
        + mapping(42, "NQU5 C21500")
        + trades(0, 2)
        + record(21, ts_event=3, err=b"Not authorized for mbo schema \xff", code=5, is_last=1)
    )
    frame = one_frame(body, begun())
    assert list(frame.messages()) == [
        SystemMsg(1, 1, "Subscription request 0 for trades data succeeded"),
        ErrorMsg(3, 5, "Not authorized for mbo schema \N{REPLACEMENT CHARACTER}"),
    ]
    assert frame.mappings() == {42: mapping(42, "NQU5 C21500")}
    assert not list(one_frame(trades(0, 2), begun()).messages())


def test_words_of_version_1_have_no_code() -> None:
    stream = head(1) + record(21, 1, err=b"Internal error") + record(23, 1, msg=b"Heartbeat")
    (frame,) = frames(stream)
    assert list(frame.messages()) == [ErrorMsg(0, 255, "Internal error"), SystemMsg(0, 255, "Heartbeat")]


def test_an_undefined_time_is_not_a_last_time() -> None:
    never = record(195, ts_event=UNDEF_TIMESTAMP, ts_recv=9)
    traded = record(195, ts_event=4, ts_recv=7) + record(195, ts_event=5, ts_recv=8)
    (frame,) = frames(head() + traded + never)
    assert (frame.tallies[195].ts_event, frame.tallies[195].ts_recv) == (5, 9)
    (frame,) = frames(head() + never)
    assert (frame.tallies[195].ts_event, frame.tallies[195].ts_recv) == (None, 9)


def test_a_stream_is_taken_up_behind_its_head() -> None:
    framer = Framer(Head.parse(head()), offset=1_000)
    frame = one_frame(trades(0, 5), framer)
    assert (frame.offset, frame.end, framer.offset) == (1_000, 1_240, 1_240)


def test_memory_does_not_grow_with_the_stream() -> None:
    framer, chunk = begun(), trades(0, 20_000)
    list(framer.feed(chunk))
    tracemalloc.start()
    for _ in range(60):  # 58 MB
        for at in range(0, len(chunk), 65_536):
            for _frame in framer.feed(chunk[at : at + 65_536]):
                pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024 * 1024


def assert_equal_to_official(framed: list[Frame], data: bytes) -> None:
    expected = official(data)
    assert b"".join(bytes(f.records) for f in framed) == b"".join(map(bytes, expected))
    kinds = [bytes(r)[1] for r in expected]
    counts = sum((Counter({k: t.count for k, t in f.tallies.items()}) for f in framed), Counter[int]())
    assert counts == Counter(kinds)
    for rtype in counts:
        whole = [f.array(rtype) for f in framed if rtype in f.tallies]
        mine = [r for r, k in zip(expected, kinds, strict=True) if k == rtype]
        assert b"".join(a.tobytes() for a in whole) == b"".join(map(bytes, mine))
        assert np.concatenate([a["ts_event"] for a in whole]).tolist() == [r.ts_event for r in mine]
        tallies = [f.tallies[rtype] for f in framed if rtype in f.tallies]
        times = [t.ts_event for t in tallies if t.ts_event is not None]
        received = [t.ts_recv for t in tallies if t.ts_recv is not None]
        if rtype in EVENTS:
            near = [
                r for r in mine if abs(r.ts_event - r.ts_recv) <= NEAR_NS and r.ts_event != UNDEF_TIMESTAMP
            ]
            assert times[-1:] == [min(r.ts_event, r.ts_recv) for r in near[-1:]]
            assert received[-1:] == [r.ts_recv for r in near[-1:]]
        else:
            assert times[-1:] == [r.ts_event for r in mine if r.ts_event != UNDEF_TIMESTAMP][-1:]
            assert received[-1:] == [r.ts_recv for r in mine[-1:] if hasattr(r, "ts_recv")]
    assert [type(m).__name__ for f in framed for m in f.messages()] == [
        {21: "ErrorMsg", 23: "SystemMsg"}[k] for k in kinds if k in (21, 23)
    ]


def test_every_rtype_of_the_official_library_is_known() -> None:
    assert set(STRUCTS) == {int(rtype) for rtype in databento_dbn.RType.variants()}
