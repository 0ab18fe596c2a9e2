"""What data costs and what the plans include."""

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
    meaning="What vendors said about what the plan includes: one row per answer; the newest is in force.",
    columns=(
        required("vendor", TEXT, "vendor"),
        required("dataset", TEXT, "Databento's dataset, or the vendor's product"),
        required("schema", TEXT, "Databento's schema, Polygon's underlying, or chain for the whole of it"),
        required("mode", TEXT, "live, or historical"),
        required("address", TEXT, "base address of who said so; empty for Databento's gateway and backfills"),
        ENVIRONMENT,
        required("asked_at", INSTANT, "when it was said (real time)"),
        required("trade_date", DATE, "CME session date, by the clock of whoever asked"),
        required("entitled", BOOL, "whether it was given"),
        nullable("text", TEXT, "what the vendor said, its code included"),
        nullable("step", TEXT, "what was done about it"),
        nullable("data_from", DATE, "of history: what was refused is this trade date and later ones"),
        nullable(
            "ask_again", DATE, "the first trade date on which it is worth asking again; null when entitled"
        ),
    ),
    key=("vendor", "dataset", "schema", "mode", "address", "asked_at"),
    order=("asked_at",),
    since="asked_at",
)

SPEND = Table(
    name="spend",
    version=1,
    meaning="The lines of the spend ledger: what was reserved, paid, given back, refused and changed.",
    columns=(
        required("ledger", INSTANT, "when the ledger was begun; tells one ledger from another"),
        required("line", INT, "number of the line in its ledger"),
        ENVIRONMENT,
        required("recorded_at", INSTANT, "when it was written (real time)"),
        required("trade_date", DATE, "CME session date of that moment"),
        required("kind", TEXT, "subscription, reserved, committed, released, reconciled, refused, …"),
        required("booked_at", INSTANT, "the moment the money counts at: that of the reservation"),
        required("day", DATE, "its day in the zone of the budgets; of a plan's fee the first of the month"),
        required("zone", TEXT, "zone of the budgets at that time"),
        nullable("reservation_id", TEXT, "lines of one reservation share it; null on other lines"),
        nullable("vendor", TEXT, "who bills it"),
        nullable("purpose", TEXT, "chains, backfill, gap_repair, verify; null on a plan's fee"),
        nullable("dataset", TEXT, "Databento's dataset"),
        nullable("schema", TEXT, "Databento's schema"),
        nullable("mode", TEXT, "historical-streaming, or historical (a batch job)"),
        nullable("description", TEXT, "what was asked for"),
        nullable("run_id", TEXT, "the run that asked"),
        required("reserved_usd", USD, "held by the line; negative where it gives back"),
        required("spent_usd", USD, "paid by the line; negative where it corrects"),
        nullable("priced_usd", USD, "what the vendor said it would cost; null when it would not say"),
        nullable("bytes", INT, "billable bytes: as priced on a reservation, as they came on a commit"),
        nullable("unit_price_usd", USD, "price per GiB (2**30 bytes)"),
        nullable("priced_at", INSTANT, "when the vendor said so"),
        nullable("request_id", TEXT, "the request (fetches.request_id)"),
        nullable("setting", TEXT, "of a change of budget: the setting"),
        nullable("value", TEXT, "of a change of budget: its value from then on"),
        nullable("reason", TEXT, "why: of refusals, releases, reconciliations, corrections, changes"),
    ),
    key=("ledger", "line"),
    order=("recorded_at", "line"),
    since="recorded_at",
)
