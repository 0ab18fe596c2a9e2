"""What every vendor's client must keep, as one inherited suite.

A vendor's test subclasses `SourceContract` and gives data: how to build the source, how a
healthy server answers, which outcome each way of misbehaving must have. A vendor that does
not speak plain HTTP overrides `vendor()`.

    class TestBarchartContract(SourceContract):
        outcomes = {"http_401": Outcome.NOT_ENTITLED, "http_403": Outcome.BLOCKED, ...}
        def settings(self, server): ...
        def source(self, settings): ...
        def answer(self, asked): ...
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
import zstandard
from polars.testing import assert_frame_equal

from nq_pipeline.clock import PinnedClock
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Source
from nq_pipeline.transport.lifetime import Lifetime
from nq_pipeline.transport.vendor_session import ArchivedSession, Scope, VendorSession
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.http_server import FAULTS, Answer, Asked, Server, serve

MOMENT = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
"""Tuesday, 10:00 in Chicago: the market is open."""

MARK = "marked-secret-5f1d"
"""Put this into every credential of `settings()`; it must be found nowhere on disk."""


DEFAULT_OUTCOMES: Mapping[str, Outcome] = {
    "http_404": Outcome.UNAVAILABLE,
    "http_429": Outcome.RATE_LIMITED,
    "http_500": Outcome.UNAVAILABLE,
    "hang_up": Outcome.UNAVAILABLE,
    "redirect": Outcome.BAD_PAYLOAD,
    "truncated": Outcome.BAD_PAYLOAD,
    "html": Outcome.BAD_PAYLOAD,
    "empty_body": Outcome.BAD_PAYLOAD,
    "half_json": Outcome.BAD_PAYLOAD,
    "json_number": Outcome.BAD_PAYLOAD,
    "json_list_of_numbers": Outcome.BAD_PAYLOAD,
    "json_null": Outcome.BAD_PAYLOAD,
    "not_utf8": Outcome.BAD_PAYLOAD,
}
"""The outcome of the whole answer by fault of `http_server.FAULTS`, unless the vendor names another."""


class SourceContract(ABC):
    """Inherit, name the class `Test…`, fill in.

    Attributes
    ----------
    outcomes
        The vendor's own outcomes by fault, a key of `http_server.FAULTS` or of `faults`; `http_401` and
        `http_403` must be among them. They add to `DEFAULT_OUTCOMES`.
    faults
        The vendor's own faults: name to a function of a request.
    series
        The requested series; two or more.
    """

    outcomes: ClassVar[Mapping[str, Outcome]] = {}
    faults: ClassVar[Mapping[str, Any]] = {}
    words: str = MARK
    series: ClassVar[tuple[Series, ...]] = (
        Series("Q2C", date(2025, 6, 11)),
        Series("Q2D", date(2025, 6, 12)),
    )

    # Each vendor defines these.

    @abstractmethod
    def settings(self, server: Server) -> Settings:
        """Settings that point at the server, with `MARK` in every credential."""

    @abstractmethod
    def source(self, settings: Settings) -> Source:
        """The source under test."""

    @abstractmethod
    def answer(self, asked: Asked) -> Answer:
        """What a healthy vendor answers."""

    def series_asked(self, asked: Asked) -> str | None:
        """The key of the one series a request is about; None where requests are about all."""
        return None

    @contextmanager
    def vendor(self, fault: str | None = None, only: str | None = None) -> Iterator[Server]:
        """A vendor that misbehaves in one way; `only` for one series key."""

        def respond(asked: Asked) -> Answer:
            if fault is None or (only is not None and self.series_asked(asked) != only):
                return self.answer(asked)
            if fault == "repeats_secrets":
                return repeated(self.answer(asked), self.words)
            own = self.faults.get(fault)
            return own(self, asked) if own else FAULTS[fault](self.answer(asked))

        with serve(respond) as server:
            yield server

    def request(self) -> ChainRequest:
        return ChainRequest(
            trade_date=date(2025, 6, 10),
            snapshot_ts=MOMENT,
            moment=MOMENT,
            series=self.series,
            run_id="run-1",
            environment="live",
        )

    def session(
        self,
        source: Source,
        folder: Path,
        *,
        allowed_s: float = 60.0,
        kind: type[VendorSession] = VendorSession,
        secrets: Collection[str] = (),
        **more: Any,
    ) -> VendorSession:
        request = self.request()
        clock = PinnedClock(MOMENT)
        return kind(
            scope=Scope(
                source=source.name,
                environment=request.environment,
                run_id=request.run_id,
                trade_date=request.trade_date,
                snapshot_ts=request.snapshot_ts,
                base_url=source.base_url,
                secrets=secrets,
            ),
            policy=replace(source.policy, spacing_s=0, per_minute=0),
            clock=clock,
            archive=Workspace(folder).archive,
            lifetime=Lifetime(clock, open_s=300, closed_s=1800),
            state_dir=folder / "state",
            deadline=time.monotonic() + allowed_s,
            **more,
        )

    def ask(
        self, server: Server, folder: Path, *, allowed_s: float = 60.0
    ) -> tuple[ChainAnswer, VendorSession]:
        settings = self.settings(server)
        source = self.source(settings)
        session = self.session(source, folder, allowed_s=allowed_s, secrets=settings.secrets)
        try:
            return source.ask(self.request(), session), session
        finally:
            session.close()

    # The contract

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "fault" in metafunc.fixturenames:
            metafunc.parametrize("fault", sorted({*DEFAULT_OUTCOMES, *metafunc.cls.outcomes}))

    def test_refused_requests_have_an_outcome(self) -> None:
        assert {"http_401", "http_403"} <= set(self.outcomes)

    def test_a_healthy_answer_is_ok_and_has_exactly_the_schema(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, session = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.OK, answer.reason
        assert dict(answer.frame.schema) == dict(SOURCE_CHAIN.schema)
        assert answer.frame.height > 0
        for column in SOURCE_CHAIN.columns:
            if not column.nullable:
                assert answer.frame[column.name].null_count() == 0, column.name
        assert {str(fetch.outcome) for fetch in session.fetches if fetch.raw_sha256} == {"ok"}

    def test_keys_are_unique_and_provenance_is_that_of_the_request(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, session = self.ask(server, tmp_path)
        frame, request = answer.frame, self.request()
        assert frame.select(SOURCE_CHAIN.key).is_duplicated().sum() == 0
        assert frame["source"].unique().to_list() == [answer.source]
        assert frame["run_id"].unique().to_list() == [request.run_id]
        assert frame["environment"].unique().to_list() == [request.environment]
        assert frame["trade_date"].unique().to_list() == [request.trade_date]
        assert frame.group_by("series").agg(one=frame["snapshot_ts"].n_unique() == 1)["one"].all()
        archived = {fetch.request_id: fetch.raw_sha256 for fetch in session.fetches}
        for request_id, digest in frame.select("request_id", "raw_sha256").unique().iter_rows():
            assert archived[request_id] == digest

    def test_every_fault_becomes_its_outcome_without_a_secret(
        self, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with self.vendor(fault) as server:
            answer, session = self.ask(server, tmp_path)
        no_secret(answer, session, server, tmp_path, caplog)
        assert answer.outcome is {**DEFAULT_OUTCOMES, **self.outcomes}[fault], answer.reason
        assert dict(answer.frame.schema) == dict(SOURCE_CHAIN.schema)
        assert answer.frame.is_empty() or answer.outcome.has_rows
        assert answer.reason or answer.outcome is Outcome.OK
        assert all(one.reason for one in answer.series.values() if one.outcome is not Outcome.OK)

    @pytest.mark.parametrize("status", [200, 401, 403, 500])
    def test_a_secret_that_the_vendor_repeats_is_struck_out(
        self,
        status: int,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        recwarn: pytest.WarningsRecorder,
    ) -> None:
        caplog.set_level(logging.DEBUG)

        def repeats(asked: Asked) -> Answer:
            words = " ".join(settings.secrets)
            body = dict.fromkeys(("status", "message", "error", "errorText", "detail"), words)
            return repeated(Answer(orjson.dumps(body), status), words)

        with self.vendor() as healthy, serve(repeats) as server:
            settings = self.settings(replace(healthy, url=server.url))
            answer, session = self.ask(replace(healthy, url=server.url), tmp_path)
            assert server.asked and MARK in " ".join(settings.secrets)
        assert not answer.outcome.has_rows
        no_secret(answer, session, server, tmp_path, caplog)
        assert MARK not in str([str(warning.message) for warning in recwarn])

    def test_no_field_of_a_good_answer_brings_a_secret_to_the_disk(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with self.vendor("repeats_secrets") as server:
            self.words = " ".join(self.settings(server).secrets)
            answer, session = self.ask(server, tmp_path)
            assert server.asked
        no_secret(answer, session, server, tmp_path, caplog)

    def test_a_repeat_within_its_lifetime_is_served_from_the_cache(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            first, _ = self.ask(server, tmp_path)
            asked = len(server.asked)
            second, session = self.ask(server, tmp_path)
            assert len(server.asked) == asked
        assert second.cached and not first.cached
        assert {fetch.cache for fetch in session.fetches} == {"hit"}
        assert_frame_equal(first.frame, second.frame)

    def test_a_failure_is_not_served_again(self, tmp_path: Path) -> None:
        with self.vendor("half_json") as server:
            self.ask(server, tmp_path)
            asked = len(server.asked)
            self.ask(server, tmp_path)
            assert len(server.asked) > asked

    def test_archived_answers_give_the_same_rows_and_ask_nobody(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            first, session = self.ask(server, tmp_path)
            asked = len(server.asked)
            source = self.source(self.settings(server))
            replay = self.session(source, tmp_path, kind=ArchivedSession, answers=session.used)
            again = source.ask(self.request(), replay)
            assert len(server.asked) == asked
        assert again.outcome is first.outcome
        assert again.series == first.series
        assert_frame_equal(first.frame, again.frame)

    def test_past_the_deadline_nothing_more_is_asked(self, tmp_path: Path) -> None:
        with self.vendor("drip") as server:
            answer, session = self.ask(server, tmp_path, allowed_s=0.7)
            asked = len(server.asked)
        assert answer.outcome in (Outcome.UNAVAILABLE, Outcome.PARTIAL)
        assert session.remaining() == 0
        assert asked <= 1
        assert {str(fetch.outcome) for fetch in session.fetches[-1:]} == {"partial"}

    def test_with_no_time_at_all_nobody_is_asked(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path, allowed_s=0.0)
            assert not server.asked
        assert answer.outcome is Outcome.UNAVAILABLE
        assert answer.frame.is_empty()

    def test_one_series_that_fails_does_not_cost_the_others(self, tmp_path: Path) -> None:
        bad, *others = [series.key for series in self.series]
        with self.vendor() as server:
            self.ask(server, tmp_path / "before")
            if not any(self.series_asked(asked) for asked in server.asked):
                pytest.skip("this vendor answers all series at once")
        with self.vendor("half_json", only=bad) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.PARTIAL
        assert answer.series[bad].outcome is Outcome.BAD_PAYLOAD
        assert {answer.series[key].outcome for key in others} == {Outcome.OK}
        assert set(answer.frame["series"].unique()) == set(others)


def repeated(answer: Answer, words: str) -> Answer:
    """The answer with the words in every place that a vendor can fill."""
    names = ("X-Warning", "request-id", "x-amzn-waf-action", "Retry-After", "Location", "Set-Cookie", "X-Any")
    headers = {**dict.fromkeys(names, words), f"X-{MARK}": words, "X-Warning": f'["Warning: {words}"]'}
    kind = f"{answer.content_type}; charset={words}"
    try:
        body = orjson.dumps(_marked(orjson.loads(answer.body), words))
    except orjson.JSONDecodeError:
        body = answer.body if answer.body.startswith((b"DBN", b"\x28\xb5")) else answer.body + words.encode()
    return replace(answer, body=body, headers=headers, content_type=kind, reason=words)


def _marked(value: Any, words: str) -> Any:
    if isinstance(value, dict):
        return {name: _marked(item, words) for name, item in value.items()} | {"more": words, words: words}
    if isinstance(value, list):
        return [_marked(item, words) for item in value]
    return f"{value} {words}" if isinstance(value, str) and MARK not in value else value


def no_secret(answer: ChainAnswer, session: VendorSession, server: Server, folder: Path, caplog: Any) -> None:
    """`MARK` is in no words, no row, no file, no log line of ours and no address that was asked."""
    logged = [record.getMessage() for record in caplog.records if record.name != "websockets.server"]
    words = [answer.reason, *(one.reason for one in answer.series.values()), *answer.refused.values()]
    rows = [session.frame().rows(), answer.frame.rows()]
    addresses = [(asked.path, asked.query) for asked in server.asked]
    assert MARK not in f"{words} {rows} {addresses} {logged}"
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert MARK.encode() not in content, path
            if path.suffix == ".zst":
                assert MARK.encode() not in zstandard.decompress(content), path
