"""The tables beside the ledger's lines; the migration `0003_leases` creates them."""

from __future__ import annotations

import sqlalchemy as sa

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
