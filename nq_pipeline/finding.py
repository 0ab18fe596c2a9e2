"""A finding: one judgement in words and numbers, about data, money or a capture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

Severity = Literal["warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement.

    Attributes
    ----------
    severity
        What a failure means: `error` for rows not to be relied on, `warn` for something to know.
    numbers
        What the sentence rests on, by name.
    table
        The details, a row per series or source; None where the sentence says it all.
    """

    passed: bool
    sentence: str
    severity: Severity = "error"
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    table: pl.DataFrame | None = None
