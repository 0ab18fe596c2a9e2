"""Vendors by name. Each is imported when it is asked for: their clients are slow to import."""

from __future__ import annotations

from importlib import import_module

from nq_pipeline.settings import SOURCE_NAMES, Settings
from nq_pipeline.sources.base import Source


def open_source(name: str, settings: Settings) -> Source:
    """The vendor of that name, configured; it asks nothing yet."""
    if name not in SOURCE_NAMES:
        raise KeyError(name)
    module = import_module(f"nq_pipeline.sources.{name}.source")
    source: Source = getattr(module, name.capitalize())(settings)
    return source
