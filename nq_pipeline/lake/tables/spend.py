"""The spend ledger and the plans' entitlements."""

from __future__ import annotations

from nq_pipeline.lake.tables.table import (
    BOOL,
    DATE,
    ENVIRONMENT,
    INSTANT,
    INT,
    TEXT,
    USD,
    Table,
    nullable,
    required,
)

ENTITLEMENTS = Table(
    name="entitlements",
    version=1,
    meaning="What the plans include: one row per answer of a vendor; the newest is current.",
    columns=(
        required("vendor", TEXT, "vendor"),
        required("dataset", TEXT, "Databento's dataset, or the vendor's product"),
        required("schema", TEXT, "Databento's schema, Polygon's underlying, or chain for the whole of it"),
        required("mode", TEXT, "live, or historical"),
        required("address", TEXT, "base address that answered; empty for Databento's gateway and backfills"),
        ENVIRONMENT,
        required("asked_at", INSTANT, "when the vendor answered (real time)"),
        required("trade_date", DATE, "CME session date, by the clock of the request"),
        required("entitled", BOOL, "whether the plan includes it"),
        nullable("text", TEXT, "the vendor's text, its code included"),
        nullable("step", TEXT, "what the pipeline does about it"),
        nullable("data_from", DATE, "for history: this trade date and later ones are refused"),
        nullable("ask_again", DATE, "the first trade date on which to ask again; null when entitled"),
    ),
    key=("vendor", "dataset", "schema", "mode", "address", "asked_at"),
    order=("asked_at",),
    pruning_column="asked_at",
)

SPEND = Table(
    name="spend",
    version=1,
    meaning="The lines of the spend ledger: reservations, commits, releases, refusals and changes.",
    columns=(
        required("ledger", INSTANT, "when the ledger was created; identifies the ledger"),
        required("line", INT, "number of the line in its ledger"),
        ENVIRONMENT,
        required("recorded_at", INSTANT, "when it was written (real time)"),
        required("trade_date", DATE, "CME session date of that moment"),
        required("kind", TEXT, "subscription, reserved, committed, released, reconciled, refused, …"),
        required("booked_at", INSTANT, "when the money counts: the time of the reservation"),
        required(
            "day", DATE, "day of booked_at in the budgets' zone; for a plan's fee, the first of the month"
        ),
        required("zone", TEXT, "time zone of the budgets at that time"),
        nullable("reservation_id", TEXT, "lines of one reservation share it; null on other lines"),
        nullable("vendor", TEXT, "who bills it"),
        nullable("purpose", TEXT, "chains, backfill, gap_repair, verify; null on a plan's fee"),
        nullable("dataset", TEXT, "Databento's dataset"),
        nullable("schema", TEXT, "Databento's schema"),
        nullable("mode", TEXT, "historical-streaming, or historical (a batch job)"),
        nullable("description", TEXT, "what was requested"),
        nullable("run_id", TEXT, "the run that sent it"),
        required("reserved_usd", USD, "reserved by the line; negative where it releases"),
        required("spent_usd", USD, "paid by the line; negative where it corrects"),
        nullable("priced_usd", USD, "the vendor's quoted price; null when it quoted none"),
        nullable("bytes", INT, "billable bytes: as quoted on a reservation, as received on a commit"),
        nullable("unit_price_usd", USD, "price per GiB (2**30 bytes)"),
        nullable("priced_at", INSTANT, "when the vendor quoted it"),
        nullable("request_id", TEXT, "the request (fetches.request_id)"),
        nullable("setting", TEXT, "for a change of budget: the setting"),
        nullable("value", TEXT, "for a change of budget: the new value"),
        nullable("reason", TEXT, "why: of refusals, releases, reconciliations, corrections, changes"),
    ),
    key=("ledger", "line"),
    order=("recorded_at", "line"),
    pruning_column="recorded_at",
)
