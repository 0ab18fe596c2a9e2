"""The specs of all vendors, and their sources. A new vendor is a package and one line of `PACKAGES`."""

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
"""Packages in this folder, in the default priority."""


def _spec(package: str) -> VendorSpec:
    spec: VendorSpec = import_module(f"nq_pipeline.sources.{package}.spec").SPEC
    return spec


VENDORS = {spec.name: spec for spec in map(_spec, PACKAGES)}
"""The spec of every vendor by its name, in the default priority."""

SOURCE_NAMES = tuple(VENDORS)
STAND_INS = {name: spec.stand_in for name, spec in VENDORS.items() if spec.stand_in}
"""How to reach the stand-in of each vendor that has one in the sandbox."""


def load_source(name: str, settings: Settings) -> Source:
    """The source of a vendor with these settings; sends no request. Raises `KeyError` for an unknown name."""
    source: Source = load_object(VENDORS[name].source)(settings)
    return source


def load_object(path: str) -> Any:
    """The object at `module:name`. Imported only now, because vendors' clients are slow to import."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
