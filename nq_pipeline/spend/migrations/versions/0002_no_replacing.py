"""Nothing gets past append-only: SQLite's `INSERT OR REPLACE` removes a line without a trigger for
DELETE, and a reservation leaves the list of open ones only when a line closes it."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

LINES, OPEN = "nq_spend_lines", "nq_spend_open"
CLOSING = "kind IN ('committed', 'released', 'reconciled')"
RESERVED = "kind = 'reserved'"
SAYS = "the ledger is append-only"


def upgrade() -> None:
    for statement in _GUARDS[op.get_context().dialect.name]:
        op.execute(statement)


def _same(kinds: str) -> str:
    """An existing line that the unique indexes do not allow beside the new one."""
    return (
        f"(NEW.{kinds} AND EXISTS (SELECT 1 FROM {LINES} WHERE {kinds} "
        "AND environment = NEW.environment AND reservation_id = NEW.reservation_id))"
    )


def _closed(row: str) -> str:
    return (
        f"EXISTS (SELECT 1 FROM {LINES} WHERE {CLOSING} AND environment = {row}.environment "
        f"AND reservation_id = {row}.reservation_id)"
    )


def _refuse(name: str, event: str, table: str, when: str = "") -> str:
    condition = f"WHEN {when} " if when else ""
    return (
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} {condition}BEGIN SELECT RAISE(ABORT, '{SAYS}'); END"
    )


_GUARDS = {
    "sqlite": [
        _refuse(
            "nq_spend_no_REPLACE",
            "INSERT",
            LINES,
            f"EXISTS (SELECT 1 FROM {LINES} WHERE line_id = NEW.line_id) "
            f"OR {_same(RESERVED)} OR {_same(CLOSING)}",
        ),
        _refuse("nq_spend_open_no_UPDATE", "UPDATE", OPEN),
        _refuse("nq_spend_open_no_DELETE", "DELETE", OPEN, f"NOT {_closed('OLD')}"),
    ],
    "postgresql": [
        "CREATE FUNCTION nq_spend_open_until_closed() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF TG_OP = 'DELETE' THEN IF {_closed('OLD')} THEN RETURN OLD; END IF; END IF; "
        f"RAISE EXCEPTION '{SAYS}'; END $$",
        f"CREATE TRIGGER nq_spend_open_until_closed BEFORE UPDATE OR DELETE ON {OPEN} "
        "FOR EACH ROW EXECUTE FUNCTION nq_spend_open_until_closed()",
        f"CREATE TRIGGER nq_spend_open_no_truncate BEFORE TRUNCATE ON {OPEN} "
        "FOR EACH STATEMENT EXECUTE FUNCTION nq_spend_append_only()",
    ],
}
