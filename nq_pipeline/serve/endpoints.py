"""The endpoints that answer with rows, as declared once for the routes and for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nq_pipeline.serve.queries import (
    AS_OF,
    COLUMNS,
    FROM,
    LIMIT,
    METRICS,
    PRODUCT,
    SERIES,
    SOURCE,
    TO,
    TRADE_DATE,
    Builder,
    Parameter,
    RowQuery,
    chain,
    gaps,
    metrics,
    trades,
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of rows: its path, what it answers, its parameters and the query behind it."""

    path: str
    summary: str
    parameters: tuple[Parameter, ...]
    build: Builder

    def query(self, given: Mapping[str, str]) -> RowQuery:
        """The query that a client asks for; raises `ValueError` for what it cannot have."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := sorted(given.keys() - known.keys() - {"format"}):
            raise ValueError(
                f"{unknown[0]} is not a parameter here; parameters are {', '.join(known)}, format"
            )
        return self.build({name: known[name].parse(text) for name, text in given.items() if name in known})


_NEWEST = Parameter("newest_per_contract", bool, "with as_of: the newest row of every contract of the day")
_SPAN = (AS_OF, FROM, TO)


def _metrics(path: str, summary: str, name: str) -> Endpoint:
    narrowing = [parameter for parameter in (PRODUCT, SERIES, SOURCE) if parameter.name in COLUMNS[name]]
    return Endpoint(path, summary, (*_SPAN, *narrowing, LIMIT), metrics(name))


ENDPOINTS = (
    Endpoint(
        "/chain",
        "The current option chain, or the chain as of a moment: one row per contract.",
        (AS_OF, _NEWEST, PRODUCT, SERIES, SOURCE, LIMIT),
        chain,
    ),
    Endpoint(
        "/trades",
        "Trades of a span; by default those of the newest trade date.",
        (*_SPAN, TRADE_DATE, PRODUCT, SERIES, LIMIT),
        trades,
    ),
    Endpoint(
        "/gaps",
        "Gaps in the capture with their state, now or as of a moment.",
        (AS_OF, TRADE_DATE, LIMIT),
        gaps,
    ),
    _metrics(
        "/surface",
        "The fitted volatility surface: parameters and error of each series (table surface_slices).",
        "surface_slices",
    ),
    *(
        _metrics(
            f"/metrics/{name}",
            f"Table {name}: its newest snapshot, the newest as of a moment, or those of a span.",
            name,
        )
        for name in METRICS
    ),
)
