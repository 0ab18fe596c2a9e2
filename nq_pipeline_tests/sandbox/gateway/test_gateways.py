"""The live gateway as a part of the stand-ins' process: found by settings, one for each scenario."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from databento.common.error import BentoError

from nq_pipeline.clock import from_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.market import sessions
from nq_pipeline.runtime import endpoints
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline_tests.testing.gateway_client import recorder
from nq_pipeline_tests.testing.vendor_clients import NOON

Address = Callable[..., str]


def gateway_at(address: str) -> Any:
    """What a recorder needs to know of a gateway."""
    host, _, port = address.partition(":")
    assert host == "127.0.0.1"
    return SimpleNamespace(port=int(port))


def of_scenario(url: str) -> Any:
    return gateway_at(requests.get(f"{url}/gateway", timeout=60).json()["address"])


def test_the_sandboxs_gateway_moves_at_any_hour(stand_ins: Settings) -> None:
    databento = stand_ins.vendor(DatabentoSettings)
    assert databento.gateway and databento.api_key
    key = databento.api_key.get_secret_value()
    with recorder(gateway_at(databento.gateway), key=key, start=False) as client:
        client.subscribe(symbols="NQ.FUT")
        client.start().wait_for(5)
        begin = from_ns(client.live.metadata.start if client.live.metadata else 0)

    assert sessions.is_open(begin, "rth")
    assert begin <= datetime.now(UTC)


def test_an_explicit_gateway_is_kept(stand_ins: Settings) -> None:
    settings = build_settings(data_dir=stand_ins.data_dir, databento_gateway="127.0.0.1:9")
    with endpoints(settings) as served:
        assert served.vendor(DatabentoSettings).gateway == "127.0.0.1:9"
        assert served.vendor(DatabentoSettings).url != settings.vendor(DatabentoSettings).url


def test_a_pinned_instant_is_the_start_of_its_gateways_clock(at: Address) -> None:
    with recorder(of_scenario(at("databento"))) as client:
        client.wait_for(3)
        begin = from_ns(client.live.metadata.start if client.live.metadata else 0)

    assert timedelta(0) <= begin - datetime.fromisoformat(NOON) < timedelta(hours=1)


def test_each_scenario_keeps_its_own_gateway(at: Address) -> None:
    first, again = of_scenario(at("databento")), of_scenario(at("databento"))
    other_seed, other_time = (
        of_scenario(at("databento", seed=8)),
        of_scenario(at("databento", now="2025-06-11T15:00Z")),
    )

    assert first == again
    assert len({first.port, other_seed.port, other_time.port}) == 3


def test_idle_gateways_make_room_for_new_scenarios(at: Address) -> None:
    moments = [datetime(2025, 6, 10, 15, minute, tzinfo=UTC) for minute in range(40)]
    ports = {of_scenario(at("databento", now=f"{moment:%Y-%m-%dT%H:%MZ}")).port for moment in moments}

    assert len(ports) > 32
    with recorder(of_scenario(at("databento", now=f"{moments[-1]:%Y-%m-%dT%H:%MZ}"))) as client:
        client.wait_for(1)


def test_a_fault_can_be_posted_to_a_gateway(at: Address) -> None:
    url = at("databento", seed=9)
    with recorder(of_scenario(url)) as client:
        client.wait_for(1)
        assert requests.post(f"{url}/gateway", data="error=6", timeout=60).ok

        assert client.end() == "Internal error"

    refused = requests.post(f"{url}/gateway", data="explode", timeout=60)
    assert refused.status_code == 400
    assert "is not a fault of the gateway" in refused.text


@pytest.mark.parametrize(
    ("fault", "text"), [("blocked", "deactivated"), ("not_entitled", "live data license is required")]
)
def test_account_faults_apply_to_the_gateway(at: Address, fault: str, text: str) -> None:
    with (
        recorder(of_scenario(at("databento", fault=fault)), start=False) as client,
        pytest.raises(BentoError, match=text),
    ):
        client.subscribe()
