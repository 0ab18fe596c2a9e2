"""Every fault of every vendor, end to end: its outcome, who wins instead, what the tables tell.

What a vendor's answer must come to is in `EXPECTED`, derived from what the fault means and not
from what the program does. Faulty vendors are asked beside a healthy one of lower priority,
through real sockets, into a lake of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result
from polars.testing import assert_frame_equal

from nq_pipeline.chains import quality
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings, load
from nq_pipeline.lake import catalog
from nq_pipeline.outcome import Outcome
from nq_pipeline.runtime import endpoints
from nq_pipeline.sandbox.scenario import FAULTS
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

NOW = "2025-06-10T15:00:00Z"
"""Tuesday, 10:00 in Chicago: regular hours."""
LATER = "2025-06-10T15:05:00Z"
SERIES = ["Q2B-2025-06-10"]

FALLBACK = {**dict.fromkeys(SOURCE_NAMES, "databento"), "databento": "barchart"}
"""The healthy vendor beside each faulty one."""
PROXY = "polygon"

OK, PARTIAL, EMPTY, STALE = Outcome.OK, Outcome.PARTIAL, Outcome.EMPTY, Outcome.STALE
BLOCKED, LIMITED, BAD = Outcome.BLOCKED, Outcome.RATE_LIMITED, Outcome.BAD_PAYLOAD
NOT_ENTITLED, UNAVAILABLE = Outcome.NOT_ENTITLED, Outcome.UNAVAILABLE


@dataclass(frozen=True)
class Fate:
    """What a fault comes to.

    Attributes
    ----------
    answer
        Outcome of the vendor's whole answer.
    fetch
        The one outcome other than `ok` among its fetches; None where the questions themselves
        were answered well and only their content is poor.
    words
        What every reason in `decisions` must mention.
    """

    answer: Outcome
    fetch: Outcome | None
    words: str


WELL = Fate(OK, None, "priority")
EXPECTED: dict[str, Fate] = {
    "ok": WELL,
    "blocked": Fate(BLOCKED, BLOCKED, "refuse|captcha"),
    "challenged": Fate(BLOCKED, BLOCKED, "challenge|refuse|captcha"),
    "penalty": Fate(LIMITED, LIMITED, "too many requests"),
    "rate_limited": Fate(LIMITED, LIMITED, "too many requests"),
    # Past the deadline an answer with rows is `partial`; one byte a second brings none.
    "slow": Fate(UNAVAILABLE, PARTIAL, "time allowed"),
    "truncated": Fate(BAD, BAD, "cut off"),
    "wrong_content_type": Fate(BAD, BAD, "expected (a )?JSON"),
    "stale": Fate(STALE, None, "2025-05-30"),
    "empty": Fate(EMPTY, EMPTY, "no (contracts|options)|nothing is defined"),
    "not_entitled": Fate(NOT_ENTITLED, NOT_ENTITLED, "plan|denied|HTTP 401"),
    "malformed": Fate(PARTIAL, None, "could not be (read|used)|unusable|malformed"),
    "unavailable": Fate(UNAVAILABLE, UNAVAILABLE, "HTTP 500"),
}
"""What each fault comes to at a vendor of whom nothing else is said below."""

EXCEPTIONS: dict[tuple[str, str], Fate] = {
    # The vendor waits a second for patience, then lets us in.
    ("tradovate", "penalty"): WELL,
    # It refuses with "Unknown API Key": a credential to fix, not a ban to sit out.
    ("polygon", "blocked"): Fate(Outcome.NOT_CONFIGURED, Outcome.NOT_CONFIGURED, "API key"),
    ("polygon", "challenged"): Fate(Outcome.NOT_CONFIGURED, Outcome.NOT_CONFIGURED, "API key"),
    # Every plan lists contracts, so a plan without prices still gives those.
    ("polygon", "not_entitled"): Fate(PARTIAL, NOT_ENTITLED, "contracts without prices"),
    # A proxy loses for being one before anybody looks at its holes.
    ("polygon", "ok"): Fate(OK, None, "proxy"),
    ("polygon", "malformed"): Fate(PARTIAL, None, "proxy"),
}

CASES = [(vendor, fault) for vendor in SOURCE_NAMES for fault in FAULTS]
EVERY_CASE = pytest.mark.parametrize(("vendor", "fault"), CASES)


def fate(vendor: str, fault: str) -> Fate:
    return EXCEPTIONS.get((vendor, fault), EXPECTED[fault])


# ── one sandbox for all ─────────────────────────────────────────────────────────────────────────


class Run:
    """A snapshot and what its lake has to say about it."""

    def __init__(self, snapshot: Snapshot, environment_dir: Path) -> None:
        self.snapshot = snapshot
        self._catalog = catalog.connect(Workspace(environment_dir).lake)

    def table(self, query: str) -> pl.DataFrame:
        """The answer of the catalog."""
        frame: pl.DataFrame = self._catalog.sql(query).pl()
        return frame

    def rows(self, vendor: str) -> pl.DataFrame:
        """What a vendor sent, without what each run gives anew."""
        rows = self.table(f"from source_chain where source = '{vendor}' order by contract_key")
        return rows.drop("run_id", "request_id", "raw_sha256")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data folder of a running sandbox; all runs of this file find its one server there."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with endpoints(build_settings(data_dir=folder)):
        yield folder


@pytest.fixture(scope="module")
def snap(stand_ins: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Take a snapshot of vendors with their faults: `snap(barchart="ok", polygon="slow")`."""

    def take(**faults: str) -> Run:
        settings = load(
            data_dir=stand_ins,
            now=NOW,
            horizon_days=0,
            far_expirations=False,
            sources=tuple(faults),
            sandbox_faults=tuple(f"{vendor}={fault}" for vendor, fault in faults.items()),
            source_deadline_s=10 if "slow" in faults.values() else 30,
            http_attempts=2,
            tradovate_max_quotes=5_000,
        )
        with endpoints(settings) as reachable:
            here = reachable.with_values(data_dir=tmp_path_factory.mktemp("data"))
            return Run(take_snapshot(here, build_request(here)), here.environment_dir)

    return take


@pytest.fixture(scope="module")
def run_of(snap: Callable[..., Run]) -> Callable[[str, str], Run]:
    """The run in which a vendor has a fault; vendors with the same healthy one beside them share it."""

    @cache
    def run(fallback: str, fault: str) -> Run:
        faulty = {vendor: fault for vendor in SOURCE_NAMES if FALLBACK[vendor] == fallback}
        return snap(**faulty, **{fallback: "ok"})

    return lambda vendor, fault: run(FALLBACK[vendor], fault)


# ── every vendor, every fault ───────────────────────────────────────────────────────────────────


def test_what_is_expected_covers_every_fault_and_nothing_else() -> None:
    assert set(EXPECTED) == set(FAULTS)
    assert set(EXCEPTIONS) <= set(CASES)


@EVERY_CASE
def test_a_fault_has_its_outcome(vendor: str, fault: str, run_of: Callable[..., Run]) -> None:
    answer = run_of(vendor, fault).snapshot.results[vendor].answer
    expected = fate(vendor, fault).answer
    assert answer.outcome is expected, answer.reason
    assert (answer.frame.height > 0) is expected.has_rows
    assert (answer.reason == "") is (expected is OK)
    if fault == "malformed":
        assert answer.dropped.total() > 0


@EVERY_CASE
def test_the_next_vendor_wins_and_losers_have_reasons(
    vendor: str, fault: str, run_of: Callable[..., Run]
) -> None:
    run = run_of(vendor, fault)
    well = [
        v
        for v in run.snapshot.results
        if v != PROXY and (v == FALLBACK[vendor] or fate(v, fault).answer is OK)
    ]
    winner = well[0]
    chain = run.table("from option_chain_latest order by contract_key")
    assert chain["source"].unique().to_list() == [winner]
    assert chain["contract_key"].to_list() == run_of(winner, "ok").rows(winner)["contract_key"].to_list()

    verdicts = run.table(f"from decisions where source = '{vendor}' order by series")
    assert verdicts["series"].n_unique() == verdicts.height == len(SERIES)
    assert set(verdicts["won"]) == {vendor == winner}
    for reason in verdicts["reason"]:
        assert re.search(fate(vendor, fault).words, reason), reason
        assert is_a_sentence(reason), reason


@EVERY_CASE
def test_the_healthy_vendor_beside_it_is_complete(
    vendor: str, fault: str, run_of: Callable[..., Run]
) -> None:
    other = FALLBACK[vendor]
    assert_frame_equal(run_of(vendor, fault).rows(other), run_of(other, "ok").rows(other))
    fetches = run_of(vendor, fault).snapshot.results[other].fetches
    assert set(fetches["outcome"]) == {"ok"}


@EVERY_CASE
def test_every_fetch_has_its_outcome(vendor: str, fault: str, run_of: Callable[..., Run]) -> None:
    run = run_of(vendor, fault)
    fetches = run.table(f"from fetches where source = '{vendor}'")
    poor = fate(vendor, fault).fetch
    assert not fetches.is_empty()
    assert set(fetches["outcome"]) - {"ok"} == ({poor} if poor else set())
    for outcome, detail in fetches.select("outcome", "detail").iter_rows():
        assert (detail is None) is (outcome == "ok")
        assert detail is None or is_a_sentence(detail), detail
    assert run.table("from source_chain anti join fetches using (request_id)").is_empty()


@pytest.mark.parametrize("vendor", ["barchart", "polygon", "tradovate"])
def test_nonsense_never_becomes_a_value(vendor: str, run_of: Callable[..., Run]) -> None:
    """A cell of a malformed answer is the vendor's own or null (Databento's are of older records)."""
    good, bad = run_of(vendor, "ok").rows(vendor), run_of(vendor, "malformed").rows(vendor)
    both = bad.join(good, on="contract_key", suffix="_good")
    assert both.height == bad.height < good.height
    # Where the settlement was lost, nothing says that the price is one.
    cells = [name for name in good.columns if name not in ("contract_key", "is_settlement")]
    changed = {
        name: both.filter(pl.col(name).is_not_null() & pl.col(name).ne_missing(pl.col(f"{name}_good"))).height
        for name in cells
    }
    assert {name: n for name, n in changed.items() if n} == {}
    assert bad.null_count().sum_horizontal().item() > 0


def is_a_sentence(text: str) -> bool:
    """Words for a person: one line without Python in it, of a length that can be read."""
    return "\n" not in text and len(text) < 300 and not re.search(r"Error\(|\('|object at 0x", text)


# ── nobody is well ──────────────────────────────────────────────────────────────────────────────


def test_a_proxy_wins_with_a_warning_when_native_sources_fail(snap: Callable[..., Run]) -> None:
    run = snap(barchart="blocked", polygon="ok", tradovate="empty", databento="not_entitled")
    assert list(run.snapshot.winners) == [PROXY]
    chain = run.table("from option_chain_latest")
    assert set(chain["underlying_class"]) == {"index"} and chain.height == run.snapshot.chain.height
    won = run.table("select distinct source, outcome, reason from decisions where won")
    assert won.rows() == [(PROXY, "ok", "a proxy (not NQ options): no native source has a chain")]
    finding = quality.no_proxy(run.snapshot.chain)
    assert finding is not None
    assert (finding.passed, finding.severity) == (False, "warn")


def test_stale_vendors_never_win(snap: Callable[..., Run]) -> None:
    run = snap(**dict.fromkeys(SOURCE_NAMES, "stale"))
    assert run.snapshot.winners == {}
    assert set(run.table("select distinct source from source_chain")["source"]) == set(SOURCE_NAMES)
    assert run.table("from option_chain_latest").is_empty()


def test_the_fullest_wins_when_every_vendor_is_malformed(
    snap: Callable[..., Run],
) -> None:
    run = snap(tradovate="malformed", barchart="malformed")
    won = run.table("select distinct source, reason from decisions where won").rows()
    assert [source for source, _ in won] == ["barchart"]
    assert won[0][1].startswith("no source is healthy; this one is the most complete (")


PROGRESS = re.compile(r"  (barchart|polygon|tradovate|databento): [a-z_]+, [\d,]+ contracts")


@pytest.fixture
def variables(stand_ins: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose stand-ins are those of this file."""
    port = json.loads((stand_ins / "sandbox" / "sandbox.json").read_text())["port"]
    return {
        "NQ_DATA_DIR": str(tmp_path / "data"),
        "NQ_SANDBOX_PORT": str(port),
        "NQ_NOW": NOW,
        "NQ_HORIZON_DAYS": "0",
        "NQ_FAR_EXPIRATIONS": "0",
    }


def test_all_vendors_fail_and_the_last_good_chain_stays(variables: dict[str, str], tmp_path: Path) -> None:
    def nq(**more: str) -> Result:
        return CliRunner().invoke(main, ["run"], env={**variables, **more})

    def latest() -> pl.DataFrame:
        with catalog.connect(Workspace(tmp_path / "data" / "sandbox").lake) as lake:
            frame: pl.DataFrame = lake.sql("from option_chain_latest order by contract_key").pl()
            return frame

    assert nq().exit_code == 0
    before = latest()
    assert before["snapshot_ts"].unique().to_list() == [datetime.fromisoformat(NOW)]

    faults = "barchart=blocked,polygon=not_entitled,tradovate=truncated,databento=unavailable"
    failed = nq(NQ_NOW=LATER, NQ_SANDBOX_FAULTS=faults)
    assert failed.exit_code == 3
    assert "Winner: none; every source failed" in failed.stdout.splitlines()
    said = failed.stderr.splitlines()
    assert len(said) == 4 and all(PROGRESS.fullmatch(line) for line in said)
    for words in ("HTTP 403", "contracts without prices", "cut off", "HTTP 500"):
        assert words in failed.stdout
    assert_frame_equal(latest(), before)


def test_a_run_of_slow_vendors_ends_with_json(variables: dict[str, str]) -> None:
    """Threads that are left behind print nothing when the process ends."""
    slow = ",".join(f"{vendor}=slow" for vendor in SOURCE_NAMES)
    ended = subprocess.run(
        [sys.executable, "-m", "nq_pipeline", "run", "--json"],
        env={**os.environ, **variables, "NQ_SANDBOX_FAULTS": slow, "NQ_SOURCE_DEADLINE_S": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    report = json.loads(ended.stdout)
    assert {name: part["outcome"] for name, part in report["sources"].items()} == dict.fromkeys(
        SOURCE_NAMES, "unavailable"
    )
    assert set(report["lost"]) == set(SOURCE_NAMES) and report["winners"] == {}
    assert report["rows"]["fetches"]
