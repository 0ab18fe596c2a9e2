"""A finding: one judgement of data, money or a capture, in words and numbers."""

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
        Of a failure: `error` for unreliable rows, `warn` for information.
    numbers
        The numbers behind the sentence, by name.
    table
        Details, a row per series or source; None where the sentence is enough.
    """

    passed: bool
    sentence: str
    severity: Severity = "error"
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    table: pl.DataFrame | None = None
