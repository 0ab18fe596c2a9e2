"""The tables of the ledger's database, revision by revision. What is here never changes; a new table or
column is a new revision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

TEXT, INTEGER, INSTANT = sa.String(), sa.BigInteger(), sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LINES, OPEN = "nq_spend_lines", "nq_spend_open"
RESERVED, CLOSING = "kind = 'reserved'", "kind IN ('committed', 'released', 'reconciled')"
SAYS = "the ledger is append-only"


def _create_ledger(connection: sa.Connection) -> None:
    """The table of lines, append-only, and the list of open reservations."""
    _create(
        connection,
        LINES,
        sa.Column("line_id", NUMBER, primary_key=True, autoincrement=True),
        *(sa.Column(name, TEXT, nullable=False) for name in ("environment", "kind")),
        *(sa.Column(name, INSTANT, nullable=False) for name in ("recorded_at", "booked_at")),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("zone", TEXT, nullable=False),
        *(sa.Column(name, TEXT) for name in ("reservation_id", "vendor", "purpose", "dataset", "schema")),
        *(sa.Column(name, TEXT) for name in ("mode", "description", "run_id")),
        *(sa.Column(name, INTEGER, nullable=False) for name in ("reserved_usd", "spent_usd")),
        sa.Column("priced_usd", INTEGER),
        sa.Column("bytes", NUMBER),
        sa.Column("unit_price_usd", INTEGER),
        sa.Column("priced_at", INSTANT),
        *(sa.Column(name, TEXT) for name in ("request_id", "setting", "value", "reason", "boot")),
        sa.Column("uptime_us", NUMBER),
        *(
            sa.Index(f"nq_spend_{name}", "environment", column, "line_id")
            for name, column in (
                ("booked", "booked_at"),
                ("kind", "kind"),
                ("boot", "boot"),
                ("reservation", "reservation_id"),
            )
        ),
        *(
            sa.Index(
                name,
                "environment",
                "reservation_id",
                unique=True,
                sqlite_where=sa.text(where),
                postgresql_where=sa.text(where),
            )
            for name, where in (("nq_spend_reserved_once", RESERVED), ("nq_spend_closed_once", CLOSING))
        ),
    )
    _create(connection, OPEN, *_keys("environment", "reservation_id"))
    _execute(
        connection,
        sqlite=[_refusal(f"nq_spend_no_{event}", event, LINES) for event in ("UPDATE", "DELETE")],
        postgresql=[
            "CREATE FUNCTION nq_spend_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{SAYS}'; END $$",
            f"CREATE TRIGGER nq_spend_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {LINES} "
            "FOR EACH STATEMENT EXECUTE FUNCTION nq_spend_append_only()",
        ],
    )


def _guard_replacing(connection: sa.Connection) -> None:
    """Nothing gets past append-only: SQLite's `INSERT OR REPLACE` removes a line without a trigger for
    DELETE, and a reservation leaves the list of open ones only when a line closes it."""
    another = (
        f"EXISTS (SELECT 1 FROM {LINES} WHERE line_id = NEW.line_id) OR {_same(RESERVED)} OR {_same(CLOSING)}"
    )
    _execute(
        connection,
        sqlite=[
            _refusal("nq_spend_no_REPLACE", "INSERT", LINES, another),
            _refusal("nq_spend_open_no_UPDATE", "UPDATE", OPEN),
            _refusal("nq_spend_open_no_DELETE", "DELETE", OPEN, f"NOT {_closed('OLD')}"),
        ],
        postgresql=[
            "CREATE FUNCTION nq_spend_open_until_closed() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF TG_OP = 'DELETE' THEN IF {_closed('OLD')} THEN RETURN OLD; END IF; END IF; "
            f"RAISE EXCEPTION '{SAYS}'; END $$",
            f"CREATE TRIGGER nq_spend_open_until_closed BEFORE UPDATE OR DELETE ON {OPEN} "
            "FOR EACH ROW EXECUTE FUNCTION nq_spend_open_until_closed()",
            f"CREATE TRIGGER nq_spend_open_no_truncate BEFORE TRUNCATE ON {OPEN} "
            "FOR EACH STATEMENT EXECUTE FUNCTION nq_spend_append_only()",
        ],
    )


def _create_shared(connection: sa.Connection) -> None:
    """What several machines share beside the ledger: leases, proofs of purchases, small states, and which
    lake an environment has."""
    _create(
        connection,
        "nq_leases",
        *_keys("environment", "name"),
        sa.Column("token", INTEGER, nullable=False),
        sa.Column("holder", TEXT),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("process", INTEGER, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("since", INSTANT, nullable=False),
        sa.Column("ttl_us", INTEGER, nullable=False),
        sa.Column("renewed_us", INTEGER, nullable=False),
    )
    _create(
        connection,
        "nq_purchases",
        *_keys("environment", "digest"),
        *(sa.Column(name, TEXT, nullable=False) for name in ("dataset", "schema")),
        *(sa.Column(name, INTEGER, nullable=False) for name in ("first_ns", "last_ns")),
        *(sa.Column(name, TEXT, nullable=False) for name in ("state", "host", "run_id")),
        sa.Column("request_id", TEXT),
        sa.Column("proof", sa.Text()),
        sa.Column("changed_at", INSTANT, nullable=False),
    )
    _create(
        connection,
        "nq_states",
        *_keys("environment", "name"),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
    )
    _create(
        connection,
        "nq_lakes",
        *_keys("environment"),
        *(sa.Column(name, TEXT, nullable=False) for name in ("lake_id", "place", "host")),
        sa.Column("since", INSTANT, nullable=False),
    )


MIGRATIONS: dict[str, Callable[[sa.Connection], None]] = {
    "0001": _create_ledger,
    "0002": _guard_replacing,
    "0003": _create_shared,
}
"""What each revision changes, in order."""


def _create(connection: sa.Connection, name: str, *parts: sa.Column[Any] | sa.Index) -> None:
    sa.Table(name, sa.MetaData(), *parts, sqlite_autoincrement=name == LINES).create(connection)


def _keys(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, TEXT, primary_key=True) for name in names]


def _execute(connection: sa.Connection, **statements: list[str]) -> None:
    for statement in statements[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def _refusal(name: str, event: str, table: str, when: str = "") -> str:
    """A trigger of SQLite that refuses an event."""
    condition = f"WHEN {when} " if when else ""
    return (
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} {condition}BEGIN SELECT RAISE(ABORT, '{SAYS}'); END"
    )


def _same(kinds: str) -> str:
    """A line there is already that the new one may not stand beside, as the unique indexes have it."""
    return (
        f"(NEW.{kinds} AND EXISTS (SELECT 1 FROM {LINES} WHERE {kinds} "
        "AND environment = NEW.environment AND reservation_id = NEW.reservation_id))"
    )


def _closed(row: str) -> str:
    return (
        f"EXISTS (SELECT 1 FROM {LINES} WHERE {CLOSING} AND environment = {row}.environment "
        f"AND reservation_id = {row}.reservation_id)"
    )
