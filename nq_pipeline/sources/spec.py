"""What the program knows of a vendor before it asks: the vendor's one entry for all other rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nq_pipeline.outcome import Outcome
from nq_pipeline.settings.base import VendorSettings


@dataclass(frozen=True, slots=True)
class PlanTier:
    """One tier of what a vendor's plans include, from most to least; plans change.

    Attributes
    ----------
    adds
        What a user has with it, in one phrase.
    """

    mode: Literal["live", "historical"]
    schema: str
    adds: str


@dataclass(frozen=True, slots=True)
class StandIn:
    """How a run finds the vendor's stand-in in the sandbox.

    Attributes
    ----------
    addresses
        Name of a setting to `scheme:path` below the stand-in's mount point.
    credentials
        Name of a setting to value. Real credentials are never sent to a stand-in, even where they are set.
    """

    addresses: Mapping[str, str]
    credentials: Mapping[str, str] = field(default_factory=dict)

    def settings(self, mount: str) -> dict[str, str]:
        """The address settings of a stand-in at `//host:port/…`."""
        forms = {name: form.partition(":") for name, form in self.addresses.items()}
        return {name: f"{scheme}:{mount}{path}" for name, (scheme, _, path) in forms.items()}


@dataclass(frozen=True, slots=True)
class VendorSpec:
    """One vendor, as everything outside its package sees it.

    Importing a spec must stay cheap: its source is imported when the vendor is asked.

    Attributes
    ----------
    name
        The vendor's name in tables, settings and asset keys.
    source
        `module:Class` of its `Source`; the class takes the settings.
    description
        What its chain holds, for the catalog of assets.
    underlying
        `proxy` when its options are on something other than the future.
    cost
        What asking costs: nothing, a plan's fee, or each answer.
    plan_product
        The product whose refusal follows from the plan and therefore lasts; None when no plan decides.
    stand_in
        None when the sandbox has none: then it is asked at its own address in the sandbox, too.
    opt_in
        Settings by name that naming the vendor on the command line implies.
    replay_settings
        Settings by name without which it would not parse archived answers again, beside `opt_in`.
    penalty_s
        Seconds without a request after such an outcome, where the vendor asks for more than
        `transport.breaker.COOL_DOWN_S`. They hold from the first such answer on.
    series_of_code
        `module:function` from the vendor's own code of a series, the trade date and the settings to the
        `Series`; None when it takes series keys only.
    """

    name: str
    settings: type[VendorSettings]
    source: str
    description: str
    underlying: Literal["future", "proxy"]
    cost: Literal["free", "plan", "metered"]
    plan_product: str | None = None
    plan_tiers: tuple[PlanTier, ...] = ()
    stand_in: StandIn | None = None
    opt_in: Mapping[str, object] = field(default_factory=dict)
    replay_settings: Mapping[str, object] = field(default_factory=dict)
    penalty_s: Mapping[Outcome, float] = field(default_factory=dict)
    series_of_code: str | None = None
