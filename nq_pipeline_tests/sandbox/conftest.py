"""One real server process for all tests of this package; scenarios and faults are in its addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.runtime import endpoints
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import BarchartSettings
from nq_pipeline_tests.testing.vendor_clients import NOON


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a running server; whatever has the same data folder finds it and starts none."""
    settings = build_settings(data_dir=tmp_path_factory.mktemp("data"))
    with endpoints(settings) as served:
        yield served


@pytest.fixture(scope="session")
def root(stand_ins: Settings) -> str:
    """Base address of the running server, without vendor."""
    return stand_ins.vendor(BarchartSettings).url.removesuffix("/barchart")


@pytest.fixture
def at(root: str) -> Callable[..., str]:
    """Base address of a vendor in a scenario: `at("barchart", fault="blocked")`."""

    def address(vendor: str, *, now: str = NOON, fault: str = "ok", seed: int = 7) -> str:
        return f"{root}/with/now={now};fault={fault};seed={seed}/{vendor}"

    return address
