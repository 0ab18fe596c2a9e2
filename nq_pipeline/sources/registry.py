"""The vendors. A new one is its package and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import SPEC as BARCHART
from nq_pipeline.sources.databento.spec import SPEC as DATABENTO
from nq_pipeline.sources.polygon.spec import SPEC as POLYGON
from nq_pipeline.sources.spec import VendorSpec
from nq_pipeline.sources.tradovate.spec import SPEC as TRADOVATE

if TYPE_CHECKING:
    from nq_pipeline.sources.base import Source

VENDORS: dict[str, VendorSpec] = {
    spec.name: spec
    for spec in (
        BARCHART,
        POLYGON,
        TRADOVATE,
        DATABENTO,
    )
}
"""In the default priority."""

SOURCE_NAMES = tuple(VENDORS)
STAND_INS = {name: spec.stand_in for name, spec in VENDORS.items() if spec.stand_in}
"""The stand-ins of the vendors that have one in the sandbox."""


def open_source(name: str, settings: Settings) -> Source:
    """The vendor of that name, configured; it asks nothing yet. Raises `KeyError` for an unknown name."""
    source: Source = load_object(VENDORS[name].source)(settings)
    return source


def load_object(path: str) -> Any:
    """The object of a `module:name`; imported late: vendors' clients are slow to import."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
