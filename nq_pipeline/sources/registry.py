"""The vendors. A new one is its package and one line of `PACKAGES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nq_pipeline.settings import Settings
from nq_pipeline.sources.spec import VendorSpec

if TYPE_CHECKING:
    from nq_pipeline.sources.base import Source

PACKAGES = (
    "barchart",
    "polygon",
    "tradovate",
    "databento",
)
"""Folders beside this file, in the default priority."""


def _spec(package: str) -> VendorSpec:
    spec: VendorSpec = import_module(f"nq_pipeline.sources.{package}.spec").SPEC
    return spec


VENDORS = {spec.name: spec for spec in map(_spec, PACKAGES)}
"""The spec of every vendor by its name, in the default priority."""

SOURCE_NAMES = tuple(VENDORS)
STAND_INS = {name: spec.stand_in for name, spec in VENDORS.items() if spec.stand_in}
"""The stand-ins of the vendors that have one in the sandbox."""


def load_source(name: str, settings: Settings) -> Source:
    """The vendor of that name, configured; it asks nothing yet. Raises `KeyError` for an unknown name."""
    source: Source = load_object(VENDORS[name].source)(settings)
    return source


def load_object(path: str) -> Any:
    """The object of a `module:name`; imported late: vendors' clients are slow to import."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
