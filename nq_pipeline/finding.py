"""`Finding`: the result of one check of data, spend or a capture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

Severity = Literal["warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `numbers` and `table` (a row per series or source) are behind the sentence.

    `severity` is how bad a failure is: `error` for unreliable rows, `warn` for information.
    """

    passed: bool
    sentence: str
    severity: Severity = "error"
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    table: pl.DataFrame | None = None
