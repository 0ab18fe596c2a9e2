"""The live gateways of one process: one per requested scenario, each with its own clock.

GET  …/databento/gateway      its address, and the time of its clock
POST …/databento/gateway      the next fault, as `parse_fault` reads it
"""

from __future__ import annotations

from asyncio import Lock
from datetime import datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nq_pipeline.clock import ShiftedClock, real_now
from nq_pipeline.sandbox.gateway.fault_script import parse_fault
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.sandbox.gateway.gateway import Gateway, moving_clock
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.tape import tape
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf

MAX_GATEWAYS = 32
REFUSALS = {
    "blocked": "User or API key deactivated",
    "not_entitled": f"A live data license is required to access {DATASET}.",
}
"""The refusal of every authentication under a scenario's fault."""

Key = tuple[AnyMarket, datetime | None, str | None]


class Gateways:
    """Starts a gateway at the first request for its scenario; replaces the oldest idle one if needed."""

    def __init__(self) -> None:
        self._running: dict[Key, Gateway] = {}
        self._lock = Lock()

    async def of(self, scenario: Scenario) -> Gateway:
        """The gateway of a scenario's market, instant and refusal.

        Its clock starts at the scenario's pinned instant, or else at that of `moving_clock`.
        """
        pinned, refusal = scenario.clock.pinned, REFUSALS.get(scenario.fault)
        key = (scenario.market, pinned, refusal)
        async with self._lock:
            if key not in self._running:
                for old in [k for k, g in self._running.items() if g.idle][
                    : len(self._running) - MAX_GATEWAYS + 1
                ]:
                    await self._running.pop(old).stop()
                clock = ShiftedClock(pinned) if pinned else moving_clock(real_now())
                gateway = Gateway(tape(scenario.market), clock=clock, refusal=refusal)
                await gateway.start()
                self._running[key] = gateway
            return self._running[key]

    def gateway_routes(self, scenario_of: ScenarioOf) -> list[Route]:
        """The route below the vendor's mount point."""

        async def answer(request: Request) -> Response:
            gateway = await self.of(scenario_of(request))
            if request.method == "POST":
                gateway.script.add(parse_fault((await request.body()).decode("ascii", "replace")))
            now = gateway.clock.now().isoformat()
            return JSONResponse({"address": gateway.address, "now": now})

        return [Route("/gateway", answer, methods=["GET", "POST"])]
