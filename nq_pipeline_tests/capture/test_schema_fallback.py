"""The schemas that are left after refusals."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.errors import NotEntitled
from nq_pipeline.lake.tables import ENTITLEMENTS
from nq_pipeline.workspace import Workspace

DAY, NEXT = date(2025, 6, 10), date(2025, 6, 11)
SAID = "Not authorized for {} schema"


@pytest.fixture
def ladder(root: Path) -> SchemaFallback:
    return SchemaFallback(
        Workspace(root / "sandbox").lake, "GLBX.MDP3", {"options": "mbo", "futures": "mbp-1"}
    )


def refuse(ladder: SchemaFallback, schema: str, day: date = DAY) -> None:
    ladder.refuse(schema, SAID.format(schema), day)


def test_what_is_wanted_is_tried_first(ladder: SchemaFallback) -> None:
    assert ladder.in_force(DAY) == {"options": "mbo", "futures": "mbp-1"}


def test_every_refusal_is_one_step_for_whom_it_concerns(ladder: SchemaFallback) -> None:
    refuse(ladder, "mbo")
    assert ladder.in_force(DAY) == {"options": "mbp-1", "futures": "mbp-1"}
    refuse(ladder, "mbp-1")
    assert ladder.in_force(DAY) == {"options": "trades", "futures": "trades"}


def test_nobody_steps_up_to_more_than_is_wanted(ladder: SchemaFallback) -> None:
    refuse(ladder, "mbp-1")
    assert ladder.in_force(DAY)["futures"] == "trades"


def test_below_trades_there_is_nothing(ladder: SchemaFallback) -> None:
    for schema in ("mbo", "mbp-1", "trades"):
        refuse(ladder, schema)
    with pytest.raises(NotEntitled, match=r"Not authorized for trades schema.*CME Standard"):
        ladder.in_force(DAY)


def test_a_refusal_is_remembered_by_the_next_process(ladder: SchemaFallback) -> None:
    refuse(ladder, "mbo")
    assert SchemaFallback(ladder.lake, ladder.dataset, ladder.wanted).in_force(DAY)["options"] == "mbp-1"
    assert ladder.refused(DAY) == {"mbo": "Not authorized for mbo schema"}


def test_the_next_trade_date_tries_once_more(ladder: SchemaFallback) -> None:
    refuse(ladder, "mbo")
    assert ladder.in_force(NEXT)["options"] == "mbo"
    refuse(ladder, "mbo", NEXT)
    assert ladder.refused(NEXT) == {"mbo": "Not authorized for mbo schema"}


def test_a_refusal_is_a_row_that_says_what_was_done_about_it(ladder: SchemaFallback) -> None:
    refuse(ladder, "mbo")
    (row,) = ladder.lake.scan(ENTITLEMENTS).collect().iter_rows(named=True)
    assert (row["vendor"], row["schema"], row["mode"], row["entitled"]) == ("databento", "mbo", "live", False)
    assert (row["text"], row["step"]) == ("Not authorized for mbo schema", "mbp-1 is requested instead")
    assert row["ask_again"] == NEXT
