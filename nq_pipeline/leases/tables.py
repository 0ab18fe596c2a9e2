"""The tables beside the ledger's lines; the migration `0003_leases` creates them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

metadata = sa.MetaData()

LEASES = sa.Table(
    "nq_leases",
    metadata,
    sa.Column("environment", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("token", sa.BigInteger, comment="grows with each new holder"),
    sa.Column("holder", sa.String, comment="random, one per acquisition; null when released"),
    sa.Column("host", sa.String),
    sa.Column("process", sa.BigInteger),
    sa.Column("run_id", sa.String),
    sa.Column("since", sa.DateTime(timezone=True)),
    sa.Column("ttl_us", sa.BigInteger, comment="how long a renewal lasts, microseconds"),
    sa.Column("renewed_us", sa.BigInteger, comment="the last renewal by the database's clock, microseconds"),
)

STATES = sa.Table(
    "nq_states",
    metadata,
    sa.Column("environment", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("body", sa.Text),
    sa.Column("changed_at", sa.DateTime(timezone=True)),
)

PURCHASES = sa.Table(
    "nq_purchases",
    metadata,
    sa.Column("environment", sa.String, primary_key=True),
    sa.Column("digest", sa.String, primary_key=True, comment="of the span: dataset, schema, symbols, times"),
    sa.Column("dataset", sa.String),
    sa.Column("schema", sa.String),
    sa.Column("first_ns", sa.BigInteger),
    sa.Column("last_ns", sa.BigInteger),
    sa.Column("state", sa.String),
    sa.Column("host", sa.String),
    sa.Column("run_id", sa.String),
    sa.Column("request_id", sa.String, comment="the ledger's request, or the vendor's batch job"),
    sa.Column("proof", sa.Text, comment="the proof as it is beside the files"),
    sa.Column("changed_at", sa.DateTime(timezone=True)),
)


def insert_into(table: sa.Table, engine: sa.Engine) -> Any:
    """An INSERT that can say what to do on a conflict, in the words of the engine's database."""
    return (sqlite if engine.dialect.name == "sqlite" else postgresql).insert(table)
