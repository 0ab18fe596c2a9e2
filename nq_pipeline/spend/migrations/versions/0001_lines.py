"""The table of lines, append-only, and the list of open reservations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TABLE = "nq_spend_lines"
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("line_id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("environment", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("recorded_at", INSTANT, nullable=False),
        sa.Column("booked_at", INSTANT, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("reservation_id", sa.String()),
        sa.Column("vendor", sa.String()),
        sa.Column("purpose", sa.String()),
        sa.Column("dataset", sa.String()),
        sa.Column("schema", sa.String()),
        sa.Column("mode", sa.String()),
        sa.Column("description", sa.String()),
        sa.Column("run_id", sa.String()),
        sa.Column("reserved_usd", sa.BigInteger(), nullable=False),
        sa.Column("spent_usd", sa.BigInteger(), nullable=False),
        sa.Column("priced_usd", sa.BigInteger()),
        sa.Column("bytes", NUMBER),
        sa.Column("unit_price_usd", sa.BigInteger()),
        sa.Column("priced_at", INSTANT),
        sa.Column("request_id", sa.String()),
        sa.Column("setting", sa.String()),
        sa.Column("value", sa.String()),
        sa.Column("reason", sa.String()),
        sa.Column("boot", sa.String()),
        sa.Column("uptime_us", NUMBER),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "nq_spend_open",
        sa.Column("environment", sa.String(), primary_key=True),
        sa.Column("reservation_id", sa.String(), primary_key=True),
    )
    for name, column in (
        ("booked", "booked_at"),
        ("kind", "kind"),
        ("boot", "boot"),
        ("reservation", "reservation_id"),
    ):
        op.create_index(f"nq_spend_{name}", TABLE, ["environment", column, "line_id"])
    _unique("nq_spend_reserved_once", "kind = 'reserved'")
    _unique("nq_spend_closed_once", "kind IN ('committed', 'released', 'reconciled')")
    for statement in _APPEND_ONLY[op.get_context().dialect.name]:
        op.execute(statement)


def _unique(name: str, where: str) -> None:
    condition = sa.text(where)
    op.create_index(
        name,
        TABLE,
        ["environment", "reservation_id"],
        unique=True,
        sqlite_where=condition,
        postgresql_where=condition,
    )


_APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER nq_spend_no_{event} BEFORE {event} ON {TABLE} "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for event in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION nq_spend_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
        f"CREATE TRIGGER nq_spend_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {TABLE} "
        "FOR EACH STATEMENT EXECUTE FUNCTION nq_spend_append_only()",
    ],
}
