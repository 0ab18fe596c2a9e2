"""Barchart's options page: what it states about a series besides its rows.

It is read once per series and trade date, to check the rows and the product table. Any part of a page may be
missing, and is None then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.market.contracts import Series
from nq_pipeline.transport.json_columns import loads

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

_TOTAL = re.compile(r"(Put|Call) Open Interest Total\s+([\d,]+(?:\.\d+)?)")
_EXPIRY = re.compile(r"to expiration on\s+(\d{2}/\d{2}/\d{2})")
_POINT = re.compile(r"Option point:\s*\$([\d,.]+)")


@dataclass(frozen=True, slots=True)
class OptionsPage:
    """What a page states.

    `code` is the site's code of the series, with two year digits; `point_value` is in dollars per point;
    `open_interest` has the totals by side, `C` and `P`.
    """

    code: str | None = None
    expiration_date: date | None = None
    point_value: float | None = None
    open_interest: Mapping[str, float] = field(default_factory=dict)

    def controls(self, series: Series, rows: pl.DataFrame, *, open_interest: bool) -> dict[str, bool]:
        """Whether the page and the rows of its series agree, for what the page has.

        `open_interest` is whether both were requested at the same time, so that totals compare.
        """
        held = {}
        if self.expiration_date is not None:
            held["expiration_equals_page"] = self.expiration_date == series.expiration_date
        if self.point_value is not None:
            held["multiplier_equals_page"] = self.point_value == series.root_info.product.multiplier
        if open_interest and self.open_interest:
            sums = dict(rows.group_by("option_type").agg(pl.col("open_interest").sum()).iter_rows())
            held["open_interest_equals_page"] = all(
                sums.get(side, 0) == total for side, total in self.open_interest.items()
            )
        return held


def parse_page(html: bytes) -> OptionsPage:
    """Read a page; a part that is missing or cannot be read is left out."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "lxml")
    config = soup.select_one("script#bc-dynamic-config")
    toolbar = _text(soup, ".bc-options-toolbar__second-row")
    expiry, point = _EXPIRY.search(toolbar), _POINT.search(toolbar)
    totals = _TOTAL.findall(_text(soup, ".bc-futures-options-quotes-totals__data-row"))
    numbers = {side[0]: _number(text) for side, text in totals}
    return OptionsPage(
        code=_string(_object(config.get_text() if config else ""), "optionContract")
        or _string(_api_config(soup), "symbol"),
        expiration_date=_day(expiry[1]) if expiry else None,
        point_value=_number(point[1]) if point else None,
        open_interest={side: number for side, number in numbers.items() if number is not None},
    )


def _api_config(soup: BeautifulSoup) -> dict[str, object]:
    """The request that the page's own script makes."""
    tag = soup.select_one("[data-api-config]")
    api = _object(str(tag["data-api-config"])).get("api") if tag else None
    return api if isinstance(api, dict) else {}


def _object(text: str) -> dict[str, object]:
    try:
        value = loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _string(value: dict[str, object], name: str) -> str | None:
    text = value.get(name)
    return text if isinstance(text, str) and text else None


def _text(soup: BeautifulSoup, selector: str) -> str:
    return " ".join(" ".join(tag.get_text(" ").split()) for tag in soup.select(selector))


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None


def _day(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%m/%d/%y").date()
    except ValueError:
        return None
