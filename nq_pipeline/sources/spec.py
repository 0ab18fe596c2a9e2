"""`VendorSpec`: everything that code outside a vendor's package knows about the vendor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nq_pipeline.outcome import Outcome
from nq_pipeline.settings.base import VendorSettings


@dataclass(frozen=True, slots=True)
class PlanTier:
    """One kind of data that some of a vendor's plans include.

    `adds` is what a user gets with it, in one phrase, and the plans that include it. Plans change.
    """

    mode: Literal["live", "historical"]
    schema: str
    adds: str


@dataclass(frozen=True, slots=True)
class StandIn:
    """How a run finds the vendor's stand-in in the sandbox, by the names of settings.

    `addresses` are `scheme:path` below the stand-in's mount point. `credentials` replace real ones, which a
    stand-in never receives.
    """

    addresses: Mapping[str, str]
    credentials: Mapping[str, str] = field(default_factory=dict)

    def settings(self, mount: str) -> dict[str, str]:
        """The address settings of a stand-in that is mounted at `//host:port/…`."""
        forms = {name: form.partition(":") for name, form in self.addresses.items()}
        return {name: f"{scheme}:{mount}{path}" for name, (scheme, _, path) in forms.items()}


@dataclass(frozen=True, slots=True)
class VendorSpec:
    """One vendor.

    Importing a spec must stay cheap: the source, with the vendor's client, is imported when it is needed.

    Attributes
    ----------
    name
        In tables, settings and asset keys.
    source
        `module:Class` of its `Source`; the class takes the settings.
    description
        What its chain holds, for the catalog of assets.
    cost
        `free`, `plan` (a subscription's fee) or `metered` (a price for each answer).
    plan_product
        The product that the user's plan includes or lacks. Its refusals are recorded, because they last. None
        for a vendor without plans.
    plan_tiers
        What its plans include, the most first.
    stand_in
        None when the sandbox has none. Then the sandbox, too, uses the vendor's own address.
    opt_in, replay_settings
        Settings that `--source <vendor>` implies, and that the source needs to parse archived answers again.
    penalty_s
        Seconds without a request after an answer with this outcome, where the vendor demands more than
        `transport.breaker.COOL_DOWN_S`. The first such answer starts the pause.
    remedies
        What a user can do about an outcome, for `nq doctor`, which knows something for every outcome.
    series_of_code
        `module:function` that returns the `Series` of a vendor's own code, given the code, the trade date and
        the settings. None when `--series` takes only series keys.
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
    remedies: Mapping[Outcome, str] = field(default_factory=dict)
    series_of_code: str | None = None
