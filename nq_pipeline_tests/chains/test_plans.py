"""What a plan lacks is asked for once a trade date, and a budget of nothing buys nothing: whole runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from polars.testing import assert_frame_equal

from nq_pipeline.chains.replay import replay_snapshot
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.configuration import load
from nq_pipeline.lake.tables import ANSWERS, ENTITLEMENTS, SPEND
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.polygon.source import SNAPSHOT
from nq_pipeline.spend.entitlements import Entitlement, newest_entitlements, record_entitlement
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.verify.doctor import plan_steps
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.backfill_vendor import STREAM, form, refused
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server, serve
from nq_pipeline_tests.testing.polygon_contract import listed

METERED = (STREAM, "/v0/batch.submit_job")


def settings_for(url: str, data: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {
        "environment": "live", "data_dir": data, "databento_url": url, "databento_api_key": "db-plans",
        "sources": "databento", "ask_metered": "always", "now": standin.NOW, "http_attempts": 1,
        "http_timeout_s": 120, "source_deadline_s": 240,
    }  # fmt: skip
    return load(**{**given, **more})


def run(settings: Settings, *, refresh: bool = False) -> Snapshot:
    request = build_request(settings)
    return take_snapshot(settings, replace(request, series=request.series[:2]), refresh=refresh)


def metered(server: Server) -> int:
    return sum(asked.path in METERED for asked in server.asked)


def unlicensed(asked: Asked) -> Answer:
    return refused("dataset_unavailable_range") if asked.path == STREAM else standin.relay(asked)


def without(schemas: set[str]) -> Callable[[Asked], Answer]:
    """A plan that lacks these schemas."""

    def answer(asked: Asked) -> Answer:
        lacks = asked.path == STREAM and form(asked)["schema"] in schemas
        return refused("license_not_found_unauthorized") if lacks else standin.relay(asked)

    return answer


def test_without_a_budget_no_metered_request_is_sent(tmp_path: Path) -> None:
    with serve(standin.relay) as server:
        settings = settings_for(server.url, tmp_path, budget_daily_usd="0")
        snapshot = run(settings)
        assert metered(server) == 0 < len(server.asked)
    assert snapshot.results["databento"].answer.outcome is Outcome.OVER_BUDGET
    lake = Workspace.of(settings).lake
    (answer,) = lake.scan(ANSWERS).collect().iter_rows(named=True)
    assert answer["outcome"] == "over_budget" and "NQ_BUDGET_DAILY_USD" in answer["reason"]
    assert "refused" in lake.scan(SPEND).collect()["kind"].to_list()
    assert open_ledger(settings).month().metered_usd == Decimal(0)


def test_a_refusal_of_the_plan_wastes_one_call_a_trade_date(tmp_path: Path) -> None:
    with serve(unlicensed) as server:
        settings = settings_for(server.url, tmp_path)
        for _ in range(3):
            assert run(settings).results["databento"].answer.outcome is Outcome.NOT_ENTITLED
        assert metered(server) == 1
        (row,) = Workspace.of(settings).lake.scan(ENTITLEMENTS).collect().iter_rows(named=True)
        assert (row["vendor"], row["schema"], row["entitled"]) == ("databento", "chain", False)
        assert "dataset_unavailable_range" in row["text"]
        run(settings, refresh=True)
        assert metered(server) == 2
        run(settings_for(server.url, tmp_path, now="2025-06-11T14:00:00Z"))  # the next trade date
        assert metered(server) == 3


def test_refused_part_is_asked_for_once_a_trade_date(
    tmp_path: Path,
) -> None:
    def asked(server: Server) -> int:
        return sum(one.path == STREAM and form(one)["schema"] == "statistics" for one in server.asked)

    with serve(without({"statistics"})) as server:
        settings = settings_for(server.url, tmp_path)
        first = run(settings).results["databento"].answer
        again = run(settings).results["databento"].answer
        assert (first.outcome, again.outcome, asked(server)) == (Outcome.PARTIAL, Outcome.PARTIAL, 1)
        assert again.reason == first.reason and "license_not_found_unauthorized" in first.reason
        replayed = replay_snapshot(settings, "latest").results["databento"].answer
        assert (replayed.outcome, replayed.reason) == (again.outcome, again.reason)
        assert_frame_equal(replayed.frame.drop("run_id"), again.frame.drop("run_id"))
    said = {one.schema: one.entitled for one in newest_entitlements(Workspace.of(settings).lake)}
    assert said == {"statistics": False, "chain": True}
    refusals = [step for step in plan_steps(settings) if step.entitled is False]
    assert [(step.vendor, step.schema) for step in refusals] == [("databento", "statistics")]


def test_a_plan_that_was_upgraded_is_known_after_one_refresh(tmp_path: Path) -> None:
    lacking = {"statistics"}
    with serve(without(lacking)) as server:
        settings = settings_for(server.url, tmp_path, cache_open_s=0)
        outcomes = [run(settings).results["databento"].answer.outcome]
        lacking.clear()
        outcomes += [
            run(settings, refresh=again).results["databento"].answer.outcome for again in (False, True, False)
        ]
    assert outcomes == [Outcome.PARTIAL, Outcome.PARTIAL, Outcome.OK, Outcome.OK]
    assert not [step for step in plan_steps(settings) if step.entitled is False]


def test_plan_without_prices_is_asked_once_a_trade_date(tmp_path: Path) -> None:
    with serve(listed) as server:
        settings = settings_for(
            server.url, tmp_path, sources="polygon", polygon_url=server.url, polygon_api_key="k" * 20,
            polygon_underlyings="NDX",
        )  # fmt: skip
        answers = [run(settings).results["polygon"].answer for _ in range(3)]
        assert sum(asked.path.startswith(SNAPSHOT.path) for asked in server.asked) == 1
    assert {answer.outcome for answer in answers} == {Outcome.PARTIAL}
    assert len({(answer.frame.height, answer.reason) for answer in answers}) == 1 < answers[0].frame.height
    replayed = replay_snapshot(settings, "latest").results["polygon"].answer
    assert_frame_equal(replayed.frame.drop("run_id"), answers[0].frame.drop("run_id"))
    told = {step.schema: step for step in plan_steps(settings) if step.vendor == "polygon"}
    assert told["chain"].entitled is told["NDX"].entitled is False
    assert "You are not entitled" in told["chain"].refusal


def test_plan_steps_show_refused_granted_and_unknown(tmp_path: Path) -> None:
    with serve(unlicensed) as server:
        settings = settings_for(server.url, tmp_path)
        assert {step.entitled for step in plan_steps(settings)} == {None}
        run(settings)
    day = build_request(settings).trade_date
    for schema, entitled in (("mbo", False), ("trades", True)):
        text = "" if entitled else f"Not authorized for {schema} schema"
        said = Entitlement("databento", "GLBX.MDP3", schema, "live", "live", day, entitled, text)
        record_entitlement(Workspace.of(settings).lake, said)
    told = {(step.vendor, step.mode, step.schema): step for step in plan_steps(settings)}
    assert told["databento", "live", "mbo"].entitled is False
    assert told["databento", "live", "mbo"].refusal == "Not authorized for mbo schema"
    assert told["databento", "live", "mbp-1"].entitled is None
    assert told["databento", "live", "trades"].entitled is True
    assert told["databento", "historical", "chain"].entitled is False
    assert all(step.adds for step in told.values())


@pytest.mark.parametrize("budget", ["0", "10"])
def test_the_ledger_commits_the_bytes_that_the_vendor_bills(budget: str, tmp_path: Path) -> None:
    key, url = f"db-bill-{budget}", f"{standin.address()}/with/now={standin.NOW}/databento"
    settings = settings_for(url, tmp_path, databento_api_key=key, budget_daily_usd=budget)
    run(settings)
    asked = requests.get(f"{url}/requests", auth=(key, ""), timeout=30).json()
    billed = [one["billed_bytes"] for one in asked if one["metered"]]
    committed = [line.bytes for line in open_ledger(settings).lines() if line.kind.value == "committed"]
    assert billed == committed
    assert bool(billed) is (budget != "0")
