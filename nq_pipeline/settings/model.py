"""`Settings`: all groups of settings together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, SerializeAsAny, field_validator

from nq_pipeline.clock import Clock, PinnedClock, SystemClock, unsupported_day
from nq_pipeline.market.products import list_names
from nq_pipeline.redaction import secret_spellings
from nq_pipeline.settings.base import CommaList, SettingsGroup, VendorSettings, setting
from nq_pipeline.settings.groups import (
    AlertSettings,
    BackfillSettings,
    CaptureSettings,
    ChainSettings,
    HttpSettings,
    PricingSettings,
    QuerySettings,
    RetentionSettings,
    SandboxSettings,
    ServeSettings,
    SpendSettings,
    StoreSettings,
)

UNSAFE_IN_PATH = ("=", "*", "?", "[", "]", "{", "}", "\\")
"""Characters that readers of Parquet do not take literally in a path. The backslash also stands for a byte
that is not UTF-8."""
LONGEST_PATH = 3_800
"""Bytes. The system allows 4,096, and the files below the folder need the rest."""

AnyVendor = TypeVar("AnyVendor", bound=VendorSettings)


class Settings(SettingsGroup):
    """All settings. Build them with `nq_pipeline.configuration`, which knows the vendors."""

    environment: Literal["sandbox", "live"] = setting(
        "sandbox",
        description="`sandbox` uses stand-ins of the vendors on this machine, with a synthetic market; "
        "`live` uses the vendors.",
    )
    data_dir: Path = setting(
        Path("data"),
        validate_default=True,
        description="Folder for all data, with a folder for each environment. Its path must not contain = * "
        "? [ ] { } or a backslash, which readers of Parquet take for a column or a pattern.",
    )
    now: datetime | None = setting(
        None,
        description="Fixed instant (ISO 8601 with a time zone) to use as the current time, for sessions, "
        "partitions and freshness.",
    )
    products: CommaList = setting(
        ("NQ",),
        description=f"Products to fetch and capture: {list_names()}.",
    )
    store: StoreSettings = Field(default_factory=StoreSettings)
    chains: ChainSettings = Field(default_factory=ChainSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    pricing: PricingSettings = Field(default_factory=PricingSettings)
    vendors: Mapping[str, SerializeAsAny[VendorSettings]] = Field(default_factory=dict)
    backfill: BackfillSettings = Field(default_factory=BackfillSettings)
    capture: CaptureSettings = Field(default_factory=CaptureSettings)
    spend: SpendSettings = Field(default_factory=SpendSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    query: QuerySettings = Field(default_factory=QuerySettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    alerts: AlertSettings = Field(default_factory=AlertSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)

    @field_validator("now")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("write an instant with its time zone, e.g. 2025-06-10T15:00:00Z")
        now = value.astimezone(UTC) if value else None
        if now and (why := unsupported_day(now.date())):
            raise ValueError(why)
        return now

    @field_validator("data_dir")
    @classmethod
    def _plain_folder(cls, value: Path) -> Path:
        """Refuse characters that readers of Parquet take for a column (`name=value`) or a pattern."""
        try:
            path = os.fsencode(value.resolve())
        except (OSError, RuntimeError) as error:  # up to Python 3.12 a loop of links is a RuntimeError
            why = getattr(error, "strerror", None) or "its links form a loop"
            raise ValueError(f"the folder cannot be found ({why}); name another one") from None
        shown = path.decode("utf-8", "backslashreplace")
        if found := [sign for sign in UNSAFE_IN_PATH if sign in shown]:
            raise ValueError(
                f"{shown} has {found[0]}; choose a folder whose path has none of {' '.join(UNSAFE_IN_PATH)}"
            )
        if len(path) > LONGEST_PATH:
            raise ValueError(f"its path has {len(path):,} bytes; choose one of at most {LONGEST_PATH:,}")
        return value

    def vendor(self, model: type[AnyVendor]) -> AnyVendor:
        """The settings of one vendor, by their class."""
        return next(group for group in self.vendors.values() if isinstance(group, model))

    def groups(self) -> Iterator[SettingsGroup]:
        """Every group of settings, including this one with the general settings."""
        yield self
        yield from (group for _, group in self if isinstance(group, SettingsGroup))
        yield from self.vendors.values()

    def with_values(self, **values: Any) -> Self:
        """A validated copy with other values by name: the variable without `NQ_`, in lower case.

        Raises `KeyError` for a name that is not a setting and `pydantic.ValidationError` for a bad value.
        """
        known = {one.name: (group, one.attribute) for group in self.groups() for one in group.declared()}
        changes = defaultdict[int, dict[str, Any]](dict)
        for name, value in values.items():
            group, attribute = known[name]
            changes[id(group)][attribute] = value

        def renewed(group: Any) -> Any:
            return group.changed(changes[id(group)]) if id(group) in changes else group

        groups = {name: renewed(group) for name, group in self if isinstance(group, SettingsGroup)}
        vendors = {name: renewed(group) for name, group in self.vendors.items()}
        copy: Self = renewed(self).model_copy(update={**groups, "vendors": vendors})
        return copy

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that were given a value."""
        return frozenset(
            one.name
            for group in self.groups()
            for one in group.declared()
            if one.attribute in group.model_fields_set
        )

    @property
    def clock(self) -> Clock:
        return PinnedClock(self.now) if self.now else SystemClock()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets of all settings, in every spelling, the longest first; no output may contain one."""
        return secret_spellings({text for group in self.groups() for text in group.secret_texts()})

    def secrets_of(self, vendor: str) -> tuple[str, ...]:
        """The secrets of one vendor's settings, in every spelling, the longest first."""
        return secret_spellings(set(self.vendors[vendor].secret_texts()) if vendor in self.vendors else set())

    @property
    def environment_dir(self) -> Path:
        """Everything of this environment lives below this folder."""
        return self.data_dir / self.environment
