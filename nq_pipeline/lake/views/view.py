"""`View`: a view of the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nq_pipeline.lake.tables import Column


@dataclass(frozen=True, slots=True)
class View:
    """A view, or a table macro.

    Attributes
    ----------
    parameters
        The parameters of a macro, as in its definition; empty for a view.
    columns
        Its columns. Every instant of a table also has a column `<name>_ns`.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    parameters: str = ""

    @property
    def is_macro(self) -> bool:
        return bool(self.parameters)

    @property
    def sql(self) -> str:
        return (Path(__file__).parent / f"{self.name}.sql").read_text()
