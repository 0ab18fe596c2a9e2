"""Which schema the plan lets us stream: down from the one wanted, one step per refusal.

The gateway accepts the key and the subscription and refuses a schema only in the stream (`Not
authorized for mbo schema`), so only a request shows what the plan includes.
`reconnect_policy.next_step` recognizes the refusal and answers with a `StepDown`; the supervisor of the
capture then calls `SchemaFallback.refuse`. That stores the refusal in the table `entitlements`, where it
holds for its trade date, also after a reconnection or a restart. The next trade date requests the schema
again, in case the plan has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING

from nq_pipeline.errors import NotEntitled
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import LOWEST_LIVE_SCHEMA

if TYPE_CHECKING:
    from nq_pipeline.lake.store import Lake

FALLBACK_ORDER = ("mbo", "mbp-1", LOWEST_LIVE_SCHEMA)
"""Live schemas from most to least detailed. Trades can be derived from each."""


class SchemaFallback:
    """The schemas in force; `wanted` maps `options` and `futures` to the schema wanted for them."""

    def __init__(self, lake: Lake, dataset: str, wanted: Mapping[str, str]) -> None:
        self.lake, self.dataset, self.wanted = lake, dataset, dict(wanted)

    def in_force(self, day: date) -> dict[str, str]:
        """The best schema of each that is not refused on a trade date; `NotEntitled` if all are."""
        refused = self.refused(day)
        return {what: best_granted(schema, refused) for what, schema in self.wanted.items()}

    def refused(self, day: date) -> dict[str, str]:
        """The schemas refused on a trade date, with the gateway's words."""
        refusals = {
            schema: entitlements.active_refusal(self.lake, "databento", self.dataset, schema, "live", day)
            for schema in FALLBACK_ORDER
        }
        return {schema: refusal.text for schema, refusal in refusals.items() if refusal is not None}

    def refuse(self, schema: str, text: str, day: date) -> None:
        """Store a refusal, durably, before anything else is tried."""
        below = next(iter(FALLBACK_ORDER[FALLBACK_ORDER.index(schema) + 1 :]), None)
        entitlements.record_entitlement(
            self.lake,
            entitlements.Entitlement(
                vendor="databento",
                dataset=self.dataset,
                schema=schema,
                mode="live",
                environment=self.lake.environment,
                trade_date=day,
                entitled=False,
                text=text,
                step=f"{below} is requested instead" if below else "no lesser schema is left",
            ),
        )


def best_granted(wanted: str, refused: Mapping[str, str]) -> str:
    """The best schema from `wanted` down that is not refused; `NotEntitled` if all are."""
    schemas = FALLBACK_ORDER[FALLBACK_ORDER.index(wanted) :]
    for schema in schemas:
        if schema not in refused:
            return schema
    raise NotEntitled(
        f"the Databento plan streams none of {', '.join(schemas)} ({refused[schemas[-1]]}); "
        "choose a plan with live data (CME Standard streams trades), or leave the capture off"
    )
