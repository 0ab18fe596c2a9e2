"""Other people's tools, in a Python environment of their own, because they need older libraries than ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HOME = Path(os.environ.get("NQ_TEST_TOOLS") or Path(__file__).parents[2] / ".venv" / "tools")
"""The environment; `make tools` builds it."""


def run_with(module: str, script: str, *arguments: object) -> Any:
    """Run a script that prints JSON in an environment that has `module`; skip where there is none.

    Parameters
    ----------
    script
        Its arguments are in `sys.argv`.
    """
    python = HOME / "bin" / "python"
    if not any(HOME.glob(f"lib/python3*/site-packages/{module}")):
        pytest.skip(f"{module} is not installed in {HOME}; `make tools` does it")
    done = subprocess.run(
        [python, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
