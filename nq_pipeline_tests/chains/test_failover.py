"""Who wins a series: a table of situations, and what holds in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.chains import failover
from nq_pipeline.chains.failover import Gates, decide, oldest_fresh, winning_rows
from nq_pipeline.lake.tables import DECISIONS, OPTION_CHAIN, SOURCE_CHAIN, conform
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, SeriesAnswer, chain_frame, overall

MOMENT = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
"""Tuesday, 10:00 in Chicago."""

DECIDED = datetime(2025, 6, 10, 15, 0, 7, tzinfo=UTC)
FIRST, SECOND = Series("Q2B", date(2025, 6, 10)), Series("Q2C", date(2025, 6, 11))
NDXP = Series("NDXP", date(2025, 6, 13))
REQUEST = ChainRequest(date(2025, 6, 10), MOMENT, MOMENT, (FIRST, SECOND), "run-1", "sandbox")
GATES = Gates(stale_after_s=1800, min_complete=0.5, max_bad_quotes=0.02)


@dataclass(frozen=True)
class Board:
    """What a source offers of one series, as few numbers; `age` None is without any time."""

    contracts: int = 100
    quoted: int | None = None
    crossed: int = 0
    age: timedelta | None = timedelta(minutes=1)
    outcome: Outcome = Outcome.OK
    reason: str = ""
    last: float | None = None
    times_quotes: bool = True

    def frame(self, source: str, series: Series) -> pl.DataFrame:
        quoted = self.contracts if self.quoted is None else self.quoted
        n = pl.int_range(self.contracts)
        bid = pl.when(n < quoted).then(pl.when(n < self.crossed).then(9.0).otherwise(4.0))
        strikes = pl.DataFrame({"strike": [20_000.0 + 10 * i for i in range(self.contracts)]})
        proxy = series.root == "NDXP"
        return chain_frame(
            strikes.with_columns(
                pl.lit(value).alias(name)
                for name, value in {
                    "source": source,
                    "environment": "sandbox",
                    "snapshot_ts": MOMENT,
                    "as_of": MOMENT,
                    "trade_date": REQUEST.trade_date,
                    "underlying_class": "index" if proxy else "future",
                    "root": series.root,
                    "series": series.key,
                    "vendor_symbol": "X",
                    "expiration": series.expiration.astimezone(UTC),
                    "expiration_date": series.expiration_date,
                    "settlement_style": "PM",
                    "exercise_style": "european",
                    "option_type": "C",
                    "multiplier": 20.0,
                    "last": self.last,
                    "quote_ts" if self.times_quotes else "last_ts": self.age and MOMENT - self.age,
                    "is_settlement": False,
                    "run_id": REQUEST.run_id,
                    "request_id": "r1",
                    "raw_sha256": "0" * 64,
                }.items()
            ).with_columns(
                contract_key=pl.format("{}-C-{}", "series", pl.col("strike").cast(pl.Int64)),
                bid=bid,
                ask=pl.when(n < quoted).then(5.0),
            )
        )


FULL = Board()


def failed(outcome: Outcome) -> Board:
    return Board(contracts=0, outcome=outcome, reason=f"it was {outcome}")


def answer(source: str, boards: Mapping[Series, Board]) -> ChainAnswer:
    frames = [board.frame(source, series) for series, board in boards.items() if board.contracts]
    return ChainAnswer(
        source=source,
        outcome=overall([board.outcome for board in boards.values()]),
        reason="",
        frame=pl.concat([SOURCE_CHAIN.empty(), *frames]),
        series={s.key: SeriesAnswer(board.outcome, board.reason) for s, board in boards.items()},
    )


def judge(
    offers: Mapping[str, Mapping[Series, Board]], request: ChainRequest = REQUEST, gates: Gates = GATES
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Decisions and chosen chain; `polygon` is the proxy."""
    answers = {source: answer(source, boards) for source, boards in offers.items()}
    decisions = decide(answers, request, proxies=frozenset({"polygon"}), gates=gates, decided_at=DECIDED)
    return decisions, winning_rows(answers, decisions)


def verdicts(decisions: pl.DataFrame, series: Series = FIRST) -> dict[str, tuple[bool, str, str]]:
    """(won, outcome, reason) by source."""
    rows = decisions.filter(pl.col("series") == series.key)
    return {row["source"]: (row["won"], row["outcome"], row["reason"]) for row in rows.iter_rows(named=True)}


CASES: dict[str, tuple[dict[str, Board], str | None, dict[str, tuple[str, str]]]] = {
    "the first of two healthy ones": (
        {"barchart": FULL, "databento": FULL},
        "barchart",
        {"databento": ("ok", "healthy, but barchart has priority")},
    ),
    "priority is the order of the mapping, not of the names": (
        {"databento": FULL, "barchart": FULL},
        "databento",
        {"barchart": ("ok", "healthy, but databento has priority")},
    ),
    "a blocked first source": (
        {"barchart": failed(Outcome.BLOCKED), "databento": FULL},
        "databento",
        {"barchart": ("blocked", "it was blocked")},
    ),
    "an unlisted series": (
        {"barchart": failed(Outcome.EMPTY), "databento": FULL},
        "databento",
        {"barchart": ("empty", "it was empty")},
    ),
    "a source that says ok and gives no rows": (
        {"barchart": Board(contracts=0), "databento": FULL},
        "databento",
        {"barchart": ("empty", "no rows")},
    ),
    "contracts without any price": (
        {"barchart": Board(quoted=0), "databento": Board(contracts=60)},
        "databento",
        {"barchart": ("empty", "none of 100 contracts has a quote, a trade or a settlement")},
    ),
    "trades without quotes are prices": (
        {"barchart": Board(quoted=0, last=7.5)},
        "barchart",
        {},
    ),
    "quotes of an hour ago": (
        {"barchart": Board(age=timedelta(minutes=60)), "databento": FULL},
        "databento",
        {"barchart": ("stale", "the newest quote or trade is from Tue 2025-06-10 09:00 CT")},
    ),
    "a source that calls itself stale": (
        {"barchart": Board(outcome=Outcome.STALE, reason="of last week"), "databento": FULL},
        "databento",
        {"barchart": ("stale", "of last week")},
    ),
    "quotes without any time are taken at their word": ({"barchart": Board(age=None)}, "barchart", {}),
    "two crossed quotes in a hundred are tolerated": ({"barchart": Board(crossed=2)}, "barchart", {}),
    "three are not, even where nobody else has the series": (
        {"barchart": Board(crossed=3)},
        None,
        {"barchart": ("bad_payload", "3 of 100 quotes are crossed, negative or not finite")},
    ),
    "half of the fullest board": (
        {"barchart": Board(contracts=49), "databento": FULL},
        "databento",
        {"barchart": ("partial", "49 contracts where another source has 100")},
    ),
    "just half is enough": ({"barchart": Board(contracts=50), "databento": FULL}, "barchart",
        {"databento": ("ok", "healthy, but barchart has priority")}),
    "many contracts, few quotes": (
        {"tradovate": Board(quoted=20), "databento": FULL},
        "databento",
        {"tradovate": ("partial", "20 quoted contracts where another source has 100")},
    ),
    "a vendor that says it is not whole loses to one that is": (
        {"tradovate": Board(outcome=Outcome.PARTIAL, reason="its total differs"), "databento": FULL},
        "databento",
        {"tradovate": ("partial", "its total differs")},
    ),
    "of incomplete ones the fullest, whatever its priority": (
        {
            "tradovate": Board(quoted=20, outcome=Outcome.PARTIAL, reason="bounded"),
            "databento": Board(quoted=70, outcome=Outcome.PARTIAL, reason="late"),
        },
        "databento",
        {"tradovate": ("partial", "20 quoted contracts where another source has 70")},
    ),
    "equally full: priority": (
        {
            "barchart": Board(outcome=Outcome.PARTIAL, reason="a row was lost"),
            "databento": Board(outcome=Outcome.PARTIAL, reason="late"),
        },
        "barchart",
        {"databento": ("partial", "late")},
    ),
    "a stale source is no measure of fullness": (
        {"barchart": Board(contracts=900, age=timedelta(hours=9)), "databento": Board(contracts=90)},
        "databento",
        {"barchart": ("stale", "the newest quote or trade is from")},
    ),
    "nobody": (
        {"barchart": failed(Outcome.BLOCKED), "databento": failed(Outcome.OVER_BUDGET)},
        None,
        {"barchart": ("blocked", "it was blocked"), "databento": ("over_budget", "it was over_budget")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_who_wins_a_series_and_why_the_others_did_not(case: str) -> None:
    boards, winner, losers = CASES[case]
    decisions, chain = judge({source: {FIRST: board} for source, board in boards.items()})
    found = verdicts(decisions)
    assert [source for source, (won, _, _) in found.items() if won] == ([winner] if winner else [])
    assert set(found) - {winner} == set(losers)
    for source, (outcome, words) in losers.items():
        assert found[source][1] == outcome
        assert words in found[source][2]
    assert chain.height == (boards[winner].contracts if winner else 0)


def test_the_winner_among_unhealthy_sources_says_so() -> None:
    decisions, _ = judge({"tradovate": {FIRST: Board(outcome=Outcome.PARTIAL, reason="bounded")}})
    assert verdicts(decisions)["tradovate"] == (
        True,
        "partial",
        "no source is healthy; this one is the most complete (bounded)",
    )


@pytest.mark.parametrize("bid", [float("nan"), float("inf"), -1.0])
def test_an_invalid_price_counts_as_a_bad_quote(bid: float) -> None:
    good = answer("barchart", {FIRST: FULL})
    poor = replace(good, frame=good.frame.with_columns(bid=pl.lit(bid)))
    decisions = decide({"barchart": poor}, REQUEST, proxies=frozenset(), gates=GATES, decided_at=DECIDED)
    assert verdicts(decisions)["barchart"][:2] == (False, "bad_payload")


def test_a_hole_of_one_vendor_costs_one_series_and_not_the_chain() -> None:
    decisions, chain = judge(
        {
            "barchart": {FIRST: failed(Outcome.UNAVAILABLE), SECOND: FULL},
            "databento": {FIRST: Board(contracts=80), SECOND: FULL},
        }
    )
    assert dict(chain.group_by("series").agg(pl.col("source").unique().first()).iter_rows()) == {
        FIRST.key: "databento",
        SECOND.key: "barchart",
    }
    assert decisions.height == 4


def test_quiet_series_of_an_active_source_is_not_stale() -> None:
    quiet = Board(age=timedelta(hours=3))
    decisions, _ = judge({"barchart": {FIRST: quiet, SECOND: FULL}})
    assert verdicts(decisions, FIRST)["barchart"][0]
    alone, _ = judge({"barchart": {FIRST: quiet}})
    assert not verdicts(alone, FIRST)["barchart"][0]


def test_a_vendor_without_quote_times_is_held_to_the_session() -> None:
    quiet = Board(age=timedelta(hours=3), times_quotes=False)
    decisions, _ = judge({"barchart": {FIRST: quiet}})
    assert verdicts(decisions)["barchart"][:2] == (True, "ok")
    decisions, _ = judge({"barchart": {FIRST: replace(quiet, age=timedelta(hours=18))}})
    assert verdicts(decisions)["barchart"][:2] == (False, "stale")


@pytest.mark.parametrize("times_quotes", [True, False])
def test_a_future_time_is_not_fresh(times_quotes: bool) -> None:
    ahead = Board(age=-timedelta(days=3), times_quotes=times_quotes)
    decisions, chain = judge({"barchart": {FIRST: ahead}, "databento": {FIRST: FULL}})
    assert verdicts(decisions)["barchart"] == (
        False,
        "bad_payload",
        "the newest quote or trade is from Fri 2025-06-13 10:00 CT, in the future",
    )
    assert chain["source"].unique().to_list() == ["databento"]


def test_series_from_the_future_does_not_affect_the_others() -> None:
    ahead, old = Board(age=-timedelta(days=3)), Board(age=timedelta(hours=3))
    decisions, _ = judge({"barchart": {FIRST: ahead, SECOND: FULL}})
    assert verdicts(decisions, SECOND)["barchart"][:2] == (True, "ok")
    decisions, _ = judge({"barchart": {FIRST: ahead, SECOND: old}})
    assert verdicts(decisions, SECOND)["barchart"][:2] == (False, "stale")


@pytest.mark.parametrize(
    ("asked", "newest", "plausible"),
    [
        ("2025-06-10 10:00", "2025-06-11 15:59", True),  # a day past the session's end
        ("2025-06-10 10:00", "2025-06-11 16:01", False),
        ("2025-06-08 17:30", "2025-06-08 17:29", True),  # Sunday evening, long after Friday's moment
        ("2025-07-03 17:30", "2025-07-07 00:00", True),  # a trade date, told over Independence Day
    ],
)
def test_what_time_is_plausible_follows_the_session(asked: str, newest: str, plausible: bool) -> None:
    request = at(asked)
    limit = failover.latest_plausible(request)
    assert (at(newest).moment <= limit) is plausible


# ── proxies ─────────────────────────────────────────────────────────────────────────────────────


def test_proxy_wins_only_without_any_native_winner() -> None:
    proxy = {NDXP: FULL}
    decisions, chain = judge(
        {"polygon": proxy, "barchart": {FIRST: failed(Outcome.BLOCKED), SECOND: Board(contracts=1)}}
    )
    assert verdicts(decisions, NDXP)["polygon"][0] is False
    assert chain["underlying_class"].unique().to_list() == ["future"]

    decisions, chain = judge({"barchart": {FIRST: failed(Outcome.BLOCKED)}, "polygon": proxy})
    won, outcome, reason = verdicts(decisions, NDXP)["polygon"]
    assert (won, outcome) == (True, "ok") and "a proxy" in reason
    assert chain["underlying_class"].unique().to_list() == ["index"]


def test_a_list_of_contracts_without_prices_never_stands_in() -> None:
    listing = Board(quoted=0, outcome=Outcome.PARTIAL, reason="the plan has no snapshots")
    decisions, chain = judge({"barchart": {FIRST: failed(Outcome.BLOCKED)}, "polygon": {NDXP: listing}})
    assert verdicts(decisions, NDXP)["polygon"] == (
        False,
        "empty",
        "none of 100 contracts has a quote, a trade or a settlement (the plan has no snapshots)",
    )
    assert chain.is_empty()


def test_a_proxy_that_lists_no_series_has_its_reason_too() -> None:
    nothing = ChainAnswer("polygon", Outcome.EMPTY, "nothing is listed", SOURCE_CHAIN.empty(), {})
    answers = {"polygon": nothing, "barchart": answer("barchart", {FIRST: FULL})}
    proxies = frozenset({"polygon"})
    decisions = decide(answers, REQUEST, proxies=proxies, gates=GATES, decided_at=DECIDED)
    assert verdicts(decisions)["polygon"] == (False, "empty", "nothing is listed")
    assert verdicts(decisions)["barchart"][0]


def test_a_proxy_that_is_not_whole_stands_in_and_says_so() -> None:
    part = Board(outcome=Outcome.PARTIAL, reason="its pages were cut short")
    decisions, chain = judge({"polygon": {NDXP: part}})
    assert verdicts(decisions, NDXP)["polygon"][:2] == (True, "partial")
    assert chain.height == part.contracts


# ── freshness ───────────────────────────────────────────────────────────────────────────────────


def at(text: str) -> ChainRequest:
    """A request at an instant, 08:00 being Chicago time."""
    moment = datetime.fromisoformat(text).replace(tzinfo=sessions.CHICAGO).astimezone(UTC)
    return replace(REQUEST, moment=moment, snapshot_ts=moment, trade_date=sessions.trade_date(moment))


@pytest.mark.parametrize(
    ("moment", "oldest"),
    [
        ("2025-06-10 10:00", "2025-06-10 09:30"),  # regular hours: minutes
        ("2025-06-10 08:30", "2025-06-10 08:00"),  # their first instant is one of them
        ("2025-06-10 15:00", "2025-06-09 17:00"),  # their end is not: the session that just was
        ("2025-06-10 15:59", "2025-06-09 17:00"),
        ("2025-06-10 08:29", "2025-06-08 17:00"),  # before: the session before counts too
        ("2025-06-09 18:00", "2025-06-08 17:00"),  # the evening, already Tuesday's session
        ("2025-06-08 17:30", "2025-06-05 17:00"),  # Sunday evening: Friday's session counts
        ("2025-06-07 12:00", "2025-06-05 17:00"),  # the weekend belongs to Friday
        ("2026-04-03 08:00", "2026-04-01 17:00"),  # Good Friday, no regular hours at all
    ],
)
def test_the_oldest_quote_that_is_fresh(moment: str, oldest: str) -> None:
    expected = datetime.fromisoformat(oldest).replace(tzinfo=sessions.CHICAGO)
    assert oldest_fresh(at(moment), 1800) == expected


def test_the_edge_of_freshness_is_fresh() -> None:
    edge = Board(age=timedelta(seconds=1800))
    assert verdicts(judge({"barchart": {FIRST: edge}})[0])["barchart"][0]
    beyond = Board(age=timedelta(seconds=1800, microseconds=1))
    assert not verdicts(judge({"barchart": {FIRST: beyond}})[0])["barchart"][0]


@given(
    st.datetimes(datetime(2021, 1, 4), datetime(2027, 12, 30), timezones=st.just(UTC)),
    st.integers(1, 36_000),
    st.sampled_from(["rth", "globex", "always"]),
)
def test_freshness_limit_is_within_five_days(
    now: datetime, stale_after_s: int, window: sessions.Window
) -> None:
    moment = sessions.chain_moment(now, window)
    request = replace(REQUEST, moment=moment, snapshot_ts=now, trade_date=sessions.trade_date(now))
    oldest = oldest_fresh(request, stale_after_s)
    assert oldest < moment
    # The longest stretch without a session's opening: a weekend with a holiday beside it.
    assert moment - oldest < timedelta(days=7)


# ── whatever the situation ──────────────────────────────────────────────────────────────────────

SOUND = {
    "full": FULL,
    "thin": Board(contracts=30),
    "few_quotes": Board(quoted=30),
    "partial": Board(outcome=Outcome.PARTIAL, reason="part of it"),
    "untimed": Board(age=None),
}
UNSOUND = {
    "called_stale": Board(outcome=Outcome.STALE, reason="old"),
    "crossed": Board(crossed=50),
    "unpriced": Board(quoted=0),
    "no_rows": Board(contracts=0),
    **{
        str(o): failed(o) for o in Outcome if o not in (Outcome.OK, Outcome.PARTIAL, Outcome.STALE)
    },
}  # fmt: skip
KINDS = SOUND | UNSOUND
NATIVE = st.dictionaries(st.sampled_from([FIRST, SECOND]), st.sampled_from(sorted(KINDS)), min_size=1)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "barchart": NATIVE,
        "tradovate": NATIVE,
        "databento": NATIVE,
        "polygon": st.fixed_dictionaries({NDXP: st.sampled_from(sorted(KINDS))}),
    },
).flatmap(lambda field: st.permutations(list(field.items())).map(dict))


@given(FIELDS)
def test_the_rules_hold_in_every_field(field: dict[str, dict[Series, str]]) -> None:
    offers = {source: {s: KINDS[kind] for s, kind in boards.items()} for source, boards in field.items()}
    decisions, chain = judge(offers)

    assert dict(decisions.schema) == dict(DECISIONS.schema)
    conform(DECISIONS, decisions)
    conform(OPTION_CHAIN, chain)

    rows = decisions.rows(named=True)
    offered = {(source, s.key) for source, boards in field.items() for s in boards}
    assert len(rows) == len(offered)
    assert {(row["source"], row["series"]) for row in rows} == offered
    assert all(row["reason"] for row in rows)
    assert all(row["rank"] == list(field).index(row["source"]) + 1 for row in rows)

    winners = [row for row in rows if row["won"]]
    assert len({row["series"] for row in winners}) == len(winners)
    kind = {(source, s.key): k for source, boards in field.items() for s, k in boards.items()}
    assert not [row for row in winners if kind[row["source"], row["series"]] in UNSOUND]

    native = [row for row in rows if row["source"] != "polygon"]
    for series in (FIRST, SECOND):
        field_of = [row for row in native if row["series"] == series.key]
        sound = [row for row in field_of if kind[row["source"], row["series"]] in SOUND]
        healthy = [row for row in sound if row["outcome"] == "ok"]
        won = [row for row in field_of if row["won"]]
        assert bool(won) == bool(sound), "a sound source and no winner, or a winner out of nothing"
        if healthy:
            assert won == [min(healthy, key=lambda row: row["rank"])]
        elif won:
            assert won[0]["quoted"] == max(row["quoted"] for row in sound)

    proxy = [row for row in winners if row["source"] == "polygon"]
    native_won = any(row["won"] for row in native)
    stands_in = field.get("polygon", {}).get(NDXP) in SOUND and not native_won
    assert bool(proxy) == stands_in

    assert chain.height == sum(row["contracts"] for row in winners)
    assert set(chain.select("source", "series").unique().rows()) == {
        (row["source"], row["series"]) for row in winners
    }
    assert chain["contract_key"].n_unique() == chain.height


def test_nothing_at_all_is_an_empty_table_of_the_right_form() -> None:
    decisions, chain = judge({})
    assert decisions.is_empty() and dict(decisions.schema) == dict(DECISIONS.schema)
    assert chain.is_empty() and dict(chain.schema) == dict(OPTION_CHAIN.schema)


def test_winning_rows_carry_the_reason() -> None:
    offers = {"barchart": {FIRST: FULL}}
    decisions, chain = judge(offers)
    sent = answer("barchart", offers["barchart"]).frame
    assert chain.select(sent.columns).equals(sent)
    assert chain["selected_at"].unique().to_list() == [DECIDED]
    assert chain["selection_reason"].unique().to_list() == decisions["reason"].to_list()
