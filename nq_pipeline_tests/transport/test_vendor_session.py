"""The vendor session over real sockets: retries, limits, the cache, the archive, secrets."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from requests.adapters import HTTPAdapter

from nq_pipeline.clock import Clock, PinnedClock, SystemClock, to_ns
from nq_pipeline.errors import BadPayload, DeadlineReached, NotEntitled, SourceError, Unavailable
from nq_pipeline.lake.tables import FETCHES
from nq_pipeline.outcome import Outcome
from nq_pipeline.transport.lifetime import Keep, Lifetime
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import ArchivedSession, Scope, VendorSession, relative
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
MARK = "marked-secret-9c2e"


def new_session(
    url: str,
    folder: Path,
    *,
    clock: Clock | None = None,
    allowed_s: float = 20.0,
    kind: type[VendorSession] = VendorSession,
    lifetime: Lifetime | None = None,
    policy: Policy | None = None,
    snapshot_ts: datetime = NOW,
    **more: Any,
) -> VendorSession:
    clock = clock or PinnedClock(NOW)
    return kind(
        scope=Scope("vendor", "live", "run-1", date(2025, 6, 10), snapshot_ts, url),
        policy=policy or Policy(attempts=3),
        clock=clock,
        archive=Workspace(folder).archive,
        lifetime=lifetime or Lifetime(clock, open_s=300, closed_s=1800),
        state_dir=folder / "state",
        deadline=time.monotonic() + allowed_s,
        **more,
    )


def script(*answers: Answer) -> Callable[[Asked], Answer]:
    """Give these answers in turn, the last one for ever."""
    turns: Iterator[Answer] = iter(answers)
    last = answers[-1]
    return lambda asked: next(turns, last)


GOOD = Answer(b'{"a":1}')


def get(session: VendorSession, path: str = "/x", **more: Any) -> Any:
    return session.get(path, operation="chain", **more)


# ── retries ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault",
    [Answer(status=500), Answer(status=503), Answer(hang_up=True), Answer(b"x" * 1000, cut=True)],
    ids=["500", "503", "hang_up", "cut"],
)
def test_a_transient_fault_is_asked_again(tmp_path: Path, fault: Answer) -> None:
    with serve(script(fault, fault, GOOD)) as server:
        reply = get(new_session(server.url, tmp_path))
    assert (reply.status, reply.body, len(server.asked)) == (200, GOOD.body, 3)


def test_a_lasting_server_fault_is_a_reply_after_all_attempts(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(b"oops", status=500)) as server:
        reply = get(new_session(server.url, tmp_path))
    assert (reply.status, len(server.asked)) == (500, 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418])
def test_a_refusal_is_not_asked_again(tmp_path: Path, status: int) -> None:
    with serve(lambda asked: Answer(status=status)) as server:
        assert get(new_session(server.url, tmp_path)).status == status
    assert len(server.asked) == 1


def test_429_with_a_short_retry_after_is_retried(tmp_path: Path) -> None:
    with serve(script(Answer(status=429, headers={"Retry-After": "0"}), GOOD)) as server:
        assert get(new_session(server.url, tmp_path)).status == 200
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", ["31", "999999"])
def test_a_wait_longer_than_the_cap_is_not_waited_for(tmp_path: Path, status: int, wait: str) -> None:
    with serve(lambda asked: Answer(status=status, headers={"Retry-After": wait})) as server:
        reply = get(new_session(server.url, tmp_path, allowed_s=2_000_000))
    assert (reply.status, len(server.asked)) == (status, 1)
    assert reply.headers["retry-after"] == wait


def test_a_wait_longer_than_the_time_left_is_not_waited_for(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(status=429, headers={"Retry-After": "5"})) as server:
        reply = get(new_session(server.url, tmp_path, allowed_s=3))
    assert (reply.status, len(server.asked)) == (429, 1)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "soon"}, {"Retry-After": "²"}])
def test_429_without_retry_after_is_a_reply(tmp_path: Path, headers: dict[str, str]) -> None:
    with serve(lambda asked: Answer(status=429, headers=headers)) as server:
        assert get(new_session(server.url, tmp_path)).status == 429
    assert len(server.asked) == 1


def test_a_post_is_sent_once_whatever_comes_of_it(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(status=500)) as server:
        session = new_session(server.url, tmp_path)
        assert session.post("/token", operation="token", json={"a": 1}).status == 500
    assert [(asked.method, orjson.loads(asked.body)) for asked in server.asked] == [("POST", {"a": 1})]


def test_a_server_that_is_not_there_is_unavailable_and_recorded(tmp_path: Path) -> None:
    with serve(lambda asked: GOOD) as server:
        gone = server.url
    session = new_session(gone, tmp_path, policy=Policy(attempts=1))
    with pytest.raises(Unavailable):
        get(session)
    assert session.fetches[0].outcome is Outcome.UNAVAILABLE
    assert session.frame().schema == FETCHES.schema


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────


def test_truncated_body_is_a_bad_payload_and_not_stored(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(b"x" * 1000, cut=True)) as server:
        session = new_session(server.url, tmp_path)
        with pytest.raises(BadPayload, match=r"^the answer was cut off after \d+ bytes$"):
            get(session)
    assert session.fetches[0].outcome is Outcome.BAD_PAYLOAD
    assert not list((tmp_path / "raw").rglob("*.zst"))


def packed(body: bytes) -> Answer:
    return Answer(body, headers={"Content-Encoding": "gzip"})


def test_a_packed_body_arrives_unpacked(tmp_path: Path) -> None:
    with serve(lambda asked: packed(gzip.compress(GOOD.body))) as server:
        assert get(new_session(server.url, tmp_path)).json() == {"a": 1}


def test_broken_packing_is_a_bad_payload(tmp_path: Path) -> None:
    with serve(lambda asked: packed(b"not gzip at all")) as server, pytest.raises(BadPayload):
        get(new_session(server.url, tmp_path))


@pytest.mark.parametrize("bomb", [Answer(bytes(3_000_000)), packed(gzip.compress(bytes(3_000_000)))])
def test_oversized_body_is_refused(tmp_path: Path, bomb: Answer) -> None:
    with serve(script(bomb, GOOD)) as server:
        session = new_session(server.url, tmp_path, policy=Policy(max_bytes=1_000_000))
        with pytest.raises(BadPayload, match="1,000,000 bytes"):
            get(session, "/large")
        assert get(session, "/small").body == GOOD.body


def test_a_body_that_drips_past_the_deadline_is_given_up(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(b"x" * 1000, drip_s=0.3)) as server:
        session = new_session(server.url, tmp_path, allowed_s=0.5)
        with pytest.raises(DeadlineReached):
            get(session)
        with pytest.raises(DeadlineReached):
            get(session)
    assert len(server.asked) == 1
    assert [str(fetch.outcome) for fetch in session.fetches] == ["partial"]


def test_a_body_that_stalls_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(b"x" * 1000, drip_s=30)) as server:
        session = new_session(server.url, tmp_path, allowed_s=0.5)
        with pytest.raises(DeadlineReached):
            get(session)


def test_body_that_stalls_past_the_timeout_is_unavailable(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(b"x" * 1000, drip_s=30)) as server:
        session = new_session(server.url, tmp_path, policy=Policy(timeout_s=0.3, attempts=1))
        with pytest.raises(Unavailable):
            get(session)


def test_a_redirect_is_a_reply_and_never_followed(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(status=302, headers={"Location": "/elsewhere"})) as server:
        assert get(new_session(server.url, tmp_path)).status == 302
    assert [asked.path for asked in server.asked] == ["/x"]


def test_non_json_is_a_bad_payload_without_quoting_it(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(b"<html>private</html>", content_type="text/html; charset=x")) as server:
        reply = get(new_session(server.url, tmp_path))
    with pytest.raises(BadPayload, match="text/html of 20 bytes") as caught:
        reply.json()
    assert "private" not in str(caught.value)


# ── the cache ───────────────────────────────────────────────────────────────────────────────────


def counting() -> Callable[[Asked], Answer]:
    numbers = iter(range(1, 1000))
    return lambda asked: Answer(b'{"n":%d}' % next(numbers))


def ask_twice(
    folder: Path, first: dict[str, Any], second: dict[str, Any], **question: Any
) -> tuple[Sequence[Any], int]:
    with serve(counting()) as server:
        replies = []
        for given in (first, second):
            session = new_session(server.url, folder, **given)
            replies.append(get(session, **question))
            session.close()
        return replies, len(server.asked)


def test_hit_keeps_the_provenance_of_the_original(tmp_path: Path) -> None:
    later = {"snapshot_ts": NOW + timedelta(minutes=1)}
    (first, second), asked = ask_twice(tmp_path, {}, later, params={"b": 2, "a": 1})
    assert asked == 1
    assert (first.cached, second.cached) == (False, True)
    assert second.body == first.body
    assert (second.snapshot_ts, second.request_id, second.sha256) == (
        to_ns(NOW),
        first.request_id,
        first.sha256,
    )


def test_a_hit_expires_when_the_first_answer_does(tmp_path: Path) -> None:
    with serve(counting()) as server:
        first, second = (new_session(server.url, tmp_path) for _ in range(2))
        get(first)
        get(second)
    assert first.fresh_until is not None and first.fresh_until == second.fresh_until


@pytest.mark.parametrize(
    "second",
    [
        {"refresh": True},
        {"clock": PinnedClock(NOW + timedelta(minutes=5))},
        {"clock": SystemClock()},
    ],
    ids=["refresh", "another instant", "a running clock"],
)
def test_another_question_is_asked_again(tmp_path: Path, second: dict[str, Any]) -> None:
    replies, asked = ask_twice(tmp_path, {}, second)
    assert asked == 2
    assert [reply.cached for reply in replies] == [False, False]


def test_a_refreshed_answer_replaces_the_old_one(tmp_path: Path) -> None:
    with serve(counting()) as server:
        for refresh in (False, True):
            get(new_session(server.url, tmp_path, refresh=refresh))
        reply = get(new_session(server.url, tmp_path))
    assert (reply.cached, reply.body) == (True, b'{"n":2}')


def test_an_answer_past_its_lifetime_is_asked_again(tmp_path: Path) -> None:
    none = {"lifetime": Lifetime(PinnedClock(NOW), open_s=0, closed_s=0)}
    _, asked = ask_twice(tmp_path, none, none)
    assert asked == 2


def test_keep_never_is_asked_again(tmp_path: Path) -> None:
    _, asked = ask_twice(tmp_path, {}, {}, keep=Keep.NEVER)
    assert asked == 2


@pytest.mark.parametrize("status", [202, 404, 429, 500])
def test_only_a_success_is_kept(tmp_path: Path, status: int) -> None:
    with serve(lambda asked: Answer(b"{}", status=status)) as server:
        for _ in range(2):
            get(new_session(server.url, tmp_path, policy=Policy(attempts=1)))
    assert len(server.asked) == 2


def test_rejected_answer_is_not_served_again(tmp_path: Path) -> None:
    with serve(counting()) as server:
        session = new_session(server.url, tmp_path)
        reply = get(session, params={"fields": "a,b c", "z": "é"})
        session.reject(reply, Outcome.BAD_PAYLOAD, "not what was asked")
        session.close()
        again = new_session(server.url, tmp_path)
        assert not get(again, params={"fields": "a,b c", "z": "é"}).cached
    assert (session.fetches[0].outcome, session.fetches[0].detail) == (
        Outcome.BAD_PAYLOAD,
        "not what was asked",
    )
    assert session.frame()["outcome"].to_list() == ["bad_payload"]


def test_a_damaged_cached_answer_is_asked_again(tmp_path: Path) -> None:
    with serve(counting()) as server:
        get(new_session(server.url, tmp_path))
        (body,) = (tmp_path / "raw").rglob("*.zst")
        body.write_bytes(b"damaged")
        again = new_session(server.url, tmp_path)
        assert not again.is_cached("chain", path="/x")
        assert (get(again).body, len(server.asked)) == (b'{"n":2}', 2)


def test_cookies_last_for_a_run_and_are_not_kept(tmp_path: Path) -> None:
    answer = Answer(b"{}", headers={"Set-Cookie": f"XSRF-TOKEN={MARK}; Path=/"})
    with serve(lambda asked: answer) as server:
        session = new_session(server.url, tmp_path)
        get(session)
        assert session.cookie("XSRF-TOKEN") == MARK
        get(session, "/y")
        session.close()
        other = new_session(server.url, tmp_path)
        get(other)
        assert other.cookie("XSRF-TOKEN") is None
        other.close()
    assert f"XSRF-TOKEN={MARK}" in server.asked[1].headers["cookie"]
    assert not found_in_files(tmp_path, MARK)


def test_a_cookie_of_two_paths_has_the_value_that_came_last(tmp_path: Path) -> None:
    answer = Answer(b"{}", headers={"Set-Cookie": "XSRF-TOKEN=a; Path=/\nXSRF-TOKEN=b; Path=/x"})
    with serve(lambda asked: answer) as server:
        session = new_session(server.url, tmp_path)
        get(session)
        assert session.cookie("XSRF-TOKEN") == "b"
        session.close()


# ── rates ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "policy",
    [
        Policy(per_minute=1),
        Policy(spacing_s=60),
        Policy(per_minute=2, spacing_s=60),
        Policy(per_minute=1, spacing_s=0.5),
        Policy(per_minute=1, spacing_s=60),
        Policy(per_minute=30, spacing_s=19),
    ],
)
def test_a_rate_holds_across_sessions_that_share_a_state_folder(tmp_path: Path, policy: Policy) -> None:
    with serve(counting()) as server:
        first = new_session(server.url, tmp_path, policy=policy)
        get(first, "/a")
        first.close()
        second = new_session(server.url, tmp_path, policy=policy, allowed_s=1)
        with pytest.raises(DeadlineReached, match="rate limit"):
            get(second, "/b")
        second.close()
    assert len(server.asked) == 1
    assert second.fetches[0].outcome is Outcome.PARTIAL


def test_a_hit_costs_nothing_of_the_rate(tmp_path: Path) -> None:
    with serve(counting()) as server:
        for _ in range(3):
            session = new_session(server.url, tmp_path, policy=Policy(per_minute=1), allowed_s=20)
            get(session)
            session.close()
    assert len(server.asked) == 1


def test_a_rate_that_clears_in_time_is_waited_for(tmp_path: Path) -> None:
    with serve(counting()) as server:
        session = new_session(server.url, tmp_path, policy=Policy(spacing_s=0.2))
        for path in ("/a", "/b", "/c"):
            get(session, path)
        session.close()
    assert len(server.asked) == 3


def test_the_wait_for_a_rate_shortens_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare: list[float] = []
    send = HTTPAdapter.send

    def recorded(self: HTTPAdapter, request: Any, **options: Any) -> Any:
        spare.append(session.remaining() - options["timeout"])
        return send(self, request, **options)

    monkeypatch.setattr(HTTPAdapter, "send", recorded)
    policy = Policy(timeout_s=60, spacing_s=0.5)
    with serve(counting()) as server:
        session = new_session(server.url, tmp_path, policy=policy, allowed_s=30)
        get(session, "/a")
        get(session, "/b")
        session.close()
    assert len(spare) == 2 and min(spare) > -0.25, "an answer may come after the deadline"


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────


def found_in_files(folder: Path, text: str) -> list[Path]:
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".zst":
            content += zstandard.decompress(content)
        if text.encode() in content:
            found.append(path)
    return found


@pytest.mark.parametrize("name", ["apiKey", "apikey", "api_key", "token", "key", "password"])
def test_a_secret_parameter_reaches_the_vendor_and_nothing_else(tmp_path: Path, name: str) -> None:
    with serve(counting()) as server:
        session = new_session(server.url, tmp_path)
        reply = get(session, params={name: MARK, "a": 1}, headers={"Authorization": f"Bearer {MARK}"})
        session.close()
        other = new_session(server.url, tmp_path)
        assert get(other, params={name: "another", "a": 1}).cached
        other.close()
    assert server.asked[0].query[name] == MARK
    assert server.asked[0].headers["authorization"] == f"Bearer {MARK}"
    assert MARK not in reply.url
    assert MARK not in str(session.frame().rows())
    assert not found_in_files(tmp_path, MARK)


def test_a_posted_credential_is_nowhere(tmp_path: Path) -> None:
    with serve(lambda asked: Answer(orjson.dumps({"accessToken": MARK}))) as server:
        session = new_session(server.url, tmp_path)
        reply = session.post("/auth", operation="token", json={"password": MARK})
        session.close()
    assert reply.json() == {"accessToken": MARK}
    assert not found_in_files(tmp_path, MARK)
    assert session.fetches[0].raw_sha256 is None


def test_a_cookie_that_another_replaced_is_still_struck(tmp_path: Path) -> None:
    first, newer = f"{MARK}-first", f"{MARK}-newer"
    set_first = Answer(b"{}", headers={"Set-Cookie": f"session={first}; Path=/"})
    set_newer = Answer(b"{}", headers={"Set-Cookie": f"session={newer}; Path=/"})
    repeats = Answer(orjson.dumps({"said": first, "now": newer}), headers={"X-Warning": first})
    with serve(script(set_first, set_newer, repeats)) as server:
        session = new_session(server.url, tmp_path)
        replies = [get(session, path) for path in ("/page", "/token", "/chain")]
        session.close()
    assert f"session={newer}" in server.asked[2].headers["cookie"]
    assert replies[2].json() == {"said": "*" * len(first), "now": "*" * len(newer)}
    assert not found_in_files(tmp_path, MARK)


def test_a_failure_to_connect_does_not_speak_of_the_address(tmp_path: Path) -> None:
    with serve(counting()) as server:
        gone = server.url
    session = new_session(gone, tmp_path, policy=Policy(attempts=1))
    with pytest.raises(Unavailable) as caught:
        get(session, params={"apiKey": MARK})
    assert MARK not in str(caught.value)
    assert caught.value.__cause__ is None


def test_proxies_and_netrc_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serve(counting()) as server:
        assert get(new_session(server.url, tmp_path)).status == 200
    assert "authorization" not in server.asked[0].headers


# ── the archive ─────────────────────────────────────────────────────────────────────────────────


def test_exact_body_is_archived_under_its_request_id(tmp_path: Path) -> None:
    body = b'{ "a" :\t1.0}\n'
    with serve(lambda asked: Answer(body)) as server:
        session = new_session(server.url, tmp_path)
        reply = get(session, params={"a": 1})
    entry = session.archive.entry("vendor", date(2025, 6, 10), reply.request_id)
    assert entry is not None
    assert session.archive.get(entry) == body
    assert (entry.status, entry.sha256) == (200, session.fetches[0].raw_sha256)
    assert entry.url == f"{server.url}/x?a=1"


def test_the_archive_answers_the_same_questions_and_no_others(tmp_path: Path) -> None:
    with serve(counting()) as server:
        session = new_session(server.url, tmp_path)
        first = get(session, params={"a": 1, "apiKey": MARK})
        replay = new_session(server.url, tmp_path, kind=ArchivedSession, answers=session.used, allowed_s=0)
        again = get(replay, params={"apiKey": "another key", "a": "1"})
        with pytest.raises(Unavailable):
            get(replay, params={"a": 2})
    assert (again.body, again.request_id, again.cached) == (first.body, first.request_id, True)
    assert len(server.asked) == 1
    assert [str(fetch.outcome) for fetch in replay.fetches] == ["ok", "unavailable"]


def test_a_cached_answer_can_be_replayed_too(tmp_path: Path) -> None:
    with serve(counting()) as server:
        get(new_session(server.url, tmp_path))
        session = new_session(server.url, tmp_path)
        assert get(session).cached
    replay = new_session(server.url, tmp_path, kind=ArchivedSession, answers=session.used)
    assert get(replay).body == b'{"n":1}'


# ── what is not plain HTTP ──────────────────────────────────────────────────────────────────────


def test_an_answer_keeps_when_it_was_there(tmp_path: Path) -> None:
    scheduled, lifetime = datetime.now(UTC), Lifetime(PinnedClock(NOW), open_s=300, closed_s=1800)
    given: dict[str, Any] = {"clock": SystemClock(), "snapshot_ts": scheduled, "lifetime": lifetime}
    with serve(lambda asked: GOOD) as server:
        first = new_session(server.url, tmp_path, **given)
        reply = get(first)
        again = get(new_session(server.url, tmp_path, **given))
        replay = get(new_session(server.url, tmp_path, kind=ArchivedSession, answers=first.used, **given))
        pinned = get(new_session(server.url, tmp_path))
    assert again.cached
    assert to_ns(scheduled) < again.received_at <= reply.received_at == replay.received_at
    assert pinned.received_at == to_ns(NOW)


def test_an_old_archive_says_when_it_was_asked_instead(tmp_path: Path) -> None:
    given: dict[str, Any] = {"clock": SystemClock()}
    with serve(lambda asked: GOOD) as server:
        first = new_session(server.url, tmp_path, **given)
        get(first)
    for path in (tmp_path / "raw").rglob("*.json"):
        entry = orjson.loads(path.read_bytes())
        del entry["received_at"]
        path.write_bytes(orjson.dumps(entry))
    replay = get(new_session(server.url, tmp_path, kind=ArchivedSession, answers=first.used, **given))
    assert replay.received_at == first.fetches[0].requested_at


def test_a_call_is_performed_once_archived_and_served_again(tmp_path: Path) -> None:
    performed: list[int] = []

    def perform() -> bytes:
        performed.append(1)
        session.current_fetch.cost_usd = Decimal("0.5")
        return b"exact bytes"

    made = []
    for kept in (False, True):
        session = new_session("ws://127.0.0.1:9", tmp_path)
        assert session.is_cached("quotes", {"a": 1}) is kept
        made.append((session.call("quotes", {"a": 1}, perform), session))
    (first, paid), (second, free) = made
    assert (len(performed), first.body, second.body) == (1, b"exact bytes", b"exact bytes")
    assert (first.cached, second.cached, second.request_id) == (False, True, first.request_id)
    assert (paid.fetches[0].cost_usd, free.fetches[0].cost_usd) == (Decimal("0.5"), Decimal(0))
    assert paid.frame()["cost_usd"].to_list() == [Decimal("0.5")]


def test_a_call_that_fails_is_recorded_and_nothing_is_kept(tmp_path: Path) -> None:
    def perform() -> bytes:
        raise NotEntitled("the plan does not include it")

    session = new_session("ws://127.0.0.1:9", tmp_path)
    with pytest.raises(NotEntitled):
        session.call("quotes", {"a": 1}, perform)
    assert (session.fetches[0].outcome, session.fetches[0].detail) == (
        Outcome.NOT_ENTITLED,
        "the plan does not include it",
    )
    assert not list(tmp_path.rglob("*.zst"))


@pytest.mark.parametrize("second", [{"refresh": True}, {"clock": PinnedClock(NOW + timedelta(minutes=5))}])
def test_call_is_repeated_at_another_instant_or_on_refresh(tmp_path: Path, second: dict[str, Any]) -> None:
    numbers = iter([b"1", b"2"])
    bodies = [
        new_session("ws://127.0.0.1:9", tmp_path, **given).call("quotes", {}, lambda: next(numbers)).body
        for given in ({}, second)
    ]
    assert bodies == [b"1", b"2"]


def test_a_rejected_call_is_performed_again(tmp_path: Path) -> None:
    numbers = iter([b"1", b"2"])
    session = new_session("ws://127.0.0.1:9", tmp_path)
    reply = session.call("quotes", {}, lambda: next(numbers))
    session.reject(reply, Outcome.BAD_PAYLOAD, "no")
    assert new_session("ws://127.0.0.1:9", tmp_path).call("quotes", {}, lambda: next(numbers)).body == b"2"


def test_with_no_time_left_nothing_is_performed(tmp_path: Path) -> None:
    session = new_session("ws://127.0.0.1:9", tmp_path, allowed_s=0)
    with pytest.raises(SourceError) as caught:
        session.call("quotes", {}, lambda: pytest.fail("performed"))
    assert isinstance(caught.value, DeadlineReached)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://api.vendor.com/v3/snap?cursor=a%3D&b=1", "/v3/snap?cursor=a%3D&b=1"),
        ("https://api.vendor.com/v3/snap", "/v3/snap"),
    ],
)
def test_a_vendors_next_address_becomes_a_path_of_ours(url: str, path: str) -> None:
    assert relative(url, "https://api.vendor.com") == path
