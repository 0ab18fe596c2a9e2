"""What vendors said about plans, kept so that nobody asks in vain."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import ENTITLEMENTS
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import Entitlement
from nq_pipeline.workspace import Workspace

FRIDAY, MONDAY = date(2025, 6, 6), date(2025, 6, 9)
AT = datetime(2025, 6, 6, 14, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Workspace(tmp_path / "live").lake


def said(**more: Any) -> Entitlement:
    given: dict[str, Any] = {
        "vendor": "databento", "dataset": "GLBX.MDP3", "schema": "mbo", "mode": "live", "environment": "live",
        "trade_date": FRIDAY, "entitled": False, "text": "Not authorized for mbo schema", "asked_at": AT,
    }  # fmt: skip
    return Entitlement(**{**given, **more})


def refused(lake: Lake, today: date = FRIDAY, schema: str = "mbo", **more: Any) -> Entitlement | None:
    return entitlements.active_refusal(
        lake, "databento", "GLBX.MDP3", schema, more.pop("mode", "live"), today, **more
    )


def test_nothing_is_refused_before_the_first_request(lake: Lake) -> None:
    assert refused(lake) is None and entitlements.newest_entitlements(lake) == []


def test_a_refusal_holds_for_its_trade_date_and_keeps_the_words(lake: Lake) -> None:
    entitlements.record_entitlement(lake, said())
    found = refused(lake)
    assert found is not None and found.text == "Not authorized for mbo schema"
    assert found.ask_again == MONDAY  # not Saturday
    assert refused(lake, MONDAY) is None


@pytest.mark.parametrize(
    "other", [{"schema": "trades"}, {"mode": "historical"}, {"address": "https://other"}]
)
def test_a_refusal_says_nothing_about_anything_else(other: dict[str, Any], lake: Lake) -> None:
    entitlements.record_entitlement(lake, said())
    assert refused(lake, **other) is None


def test_the_newest_word_is_in_force(lake: Lake) -> None:
    entitlements.record_entitlement(lake, said())
    entitlements.record_entitlement(lake, said(entitled=True, text="", asked_at=AT + timedelta(hours=1)))
    assert refused(lake) is None
    assert [(one.schema, one.entitled) for one in entitlements.newest_entitlements(lake)] == [("mbo", True)]
    entitlements.record_entitlement(lake, said(asked_at=AT + timedelta(hours=2)))
    assert refused(lake) is not None


def test_what_is_granted_again_and_again_is_one_row(lake: Lake) -> None:
    for hour in range(3):
        entitlements.record_entitlement(
            lake, said(entitled=True, text="", asked_at=AT + timedelta(hours=hour))
        )
    assert lake.manifest(ENTITLEMENTS).rows == 1


def test_older_history_may_be_granted_where_newer_is_not(lake: Lake) -> None:
    entitlements.record_entitlement(lake, said(mode="historical", data_from=date(2025, 6, 5)))
    assert refused(lake, mode="historical", data_of=date(2025, 6, 4)) is None
    assert refused(lake, mode="historical", data_of=date(2025, 6, 5)) is not None
    assert refused(lake, mode="historical") is not None
