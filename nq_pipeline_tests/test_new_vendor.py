"""A new vendor is one package and one line: `docs/adding-a-source.md`, done in a copy of the program."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.market.contracts import Series
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-a-source.md"
KEY = "example-key-0123456789"
QUOTED_NS = 1_749_567_540_000_000_000
"""2025-06-10 14:59 UTC."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program and the vendor of the page."""
    folder = tmp_path_factory.mktemp("program")
    shutil.copytree(ROOT / "nq_pipeline", folder / "nq_pipeline")  # with its byte code, which is still valid
    blocks = dict(
        re.findall(r'^```python title="(.*?)"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )
    registry = folder / "nq_pipeline" / "sources" / "registry.py"
    before = registry.read_text()
    changed = re.sub(
        r"PACKAGES = \(.*?\)\n",
        lambda _: blocks.pop(registry.relative_to(folder).as_posix()),
        before,
        count=1,
        flags=re.DOTALL,
    )
    assert set(changed.splitlines()) - set(before.splitlines()) == {'    "example",'}
    registry.write_text(changed)
    assert sorted(blocks) == [f"nq_pipeline/sources/example/{name}.py" for name in ("source", "spec")]
    for name, text in blocks.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Example:
    """The HTTP side of Example; after `/down` every answer is a 500, until `/up`."""

    down = False

    def respond(self, asked: Asked) -> Answer:
        if asked.path in ("/down", "/up"):
            self.down = asked.path == "/down"
            return Answer()
        if self.down:
            return Answer(status=500)
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        if asked.path == "/status":
            return Answer(b"{}")
        assert Series.parse(asked.path.rpartition("/")[2]).root == "Q2B"
        quotes = [
            [side, strike, value - 0.5, value + 0.5, QUOTED_NS]
            for strike in range(21_300, 21_701, 50)
            for side, intrinsic in (("C", 21_500 - strike), ("P", strike - 21_500))
            for value in [max(0, intrinsic) + 60 - abs(strike - 21_500) / 10]
        ]
        return Answer(json.dumps({"underlying": "NQM5", "price": 21_500, "quotes": quotes}).encode())


STORY = """
import json, os, urllib.request
import dagster as dg
from click.testing import CliRunner
from nq_pipeline.cli import main
from nq_pipeline.configuration import load
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.runtime import endpoints

def nq(*words):
    return CliRunner().invoke(main, words).stdout

def example(path):
    urllib.request.urlopen(os.environ["NQ_EXAMPLE_URL"] + path).read()

with endpoints(load()):
    told = {"healthy": json.loads(nq("run", "--json"))}
    example("/down")
    told["down"] = json.loads(nq("run", "--json", "--refresh"))
    example("/up")
    told["rows"] = json.loads(nq("sql", "--json", "select distinct source from source_chain order by 1"))
    told["doctor"], told["settings"], told["tables"] = nq("doctor"), nq("settings"), nq("tables")

    key = dg.AssetKey(["example", "option_chain"])
    defs = build_defs(load())
    spec = next(spec for spec in defs.resolve_all_asset_specs() if spec.key == key)
    job = defs.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, partition_key="2025-06-10", asset_selection=[key])
    passed = [e.check_name for e in result.get_asset_check_evaluations() if e.asset_key == key and e.passed]
    told["dagster"] = {"description": spec.description, "tags": dict(spec.tags), "passed": passed}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def story(program: Path) -> Any:
    """What the commands and Dagster say of the new vendor, with Barchart's stand-in beside it."""
    with serve(Example().respond) as server:
        variables = {
            **os.environ,
            "PYTHONPATH": str(program),
            "NQ_DATA_DIR": str(program / "data"),
            "NQ_NOW": "2025-06-10T15:00:00Z",
            "NQ_HORIZON_DAYS": "0",
            "NQ_FAR_EXPIRATIONS": "0",
            "NQ_SOURCES": "example,barchart",
            "NQ_HTTP_ATTEMPTS": "1",
            "NQ_MIN_COMPLETE": "0",  # the example sends fewer strikes than the stand-in lists
            "NQ_EXAMPLE_URL": server.url,
            "EXAMPLE_API_KEY": KEY,
        }
        done = subprocess.run(
            [sys.executable, "-c", STORY],
            cwd=program,
            env=variables,
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_its_chain_wins_by_priority(story: Any) -> None:
    assert story["healthy"]["winners"] == {"example": 18}
    assert {"source": "example"} in story["rows"]


def test_another_vendor_wins_when_it_fails(story: Any) -> None:
    assert set(story["down"]["winners"]) == {"barchart"}
    assert "example" in story["down"]["lost"]


def test_doctor_settings_and_tables_know_it(story: Any) -> None:
    assert re.search(r"example.*status page", story["doctor"])
    assert "EXAMPLE_API_KEY=(set, hidden)" in story["settings"]
    assert "source_chain" in story["tables"]


def test_dagster_materializes_it_and_passes_its_checks(story: Any) -> None:
    dagster = story["dagster"]
    assert dagster["description"].startswith("Options on E-mini Nasdaq-100 futures from Example.")
    assert (dagster["tags"]["nq/underlying"], dagster["tags"]["nq/cost"]) == ("future", "free")
    assert {"available", "fresh", "no_bad_quotes"} <= set(dagster["passed"])
