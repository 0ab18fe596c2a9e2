"""Hosts that share a database, on every database that leases are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest

from nq_pipeline_tests.testing.lease_hosts import Hosts
from nq_pipeline_tests.testing.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Hosts:
    """Hosts with one database between them."""
    if request.param == "sqlite":
        return Hosts(tmp_path, f"sqlite:///{tmp_path}/shared.sqlite")
    return Hosts(tmp_path, request.getfixturevalue("postgres").new_database())


@pytest.fixture
def distant(postgres: PostgresServer, tmp_path: Path) -> Hosts:
    """Hosts with a PostgreSQL between them."""
    return Hosts(tmp_path, postgres.new_database())
