"""The shared pieces of a cluster, started once for all its tests."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import UiError
from nq_pipeline.runtime import endpoints
from nq_pipeline.ui import cluster
from nq_pipeline_tests.testing.cluster_hosts import HostFactory, new_hosts


@pytest.fixture(scope="package")
def shared() -> Iterator[cluster.Shared]:
    """PostgreSQL, Redis and the S3 stand-in; tests skip where they are not installed."""
    folder = Path(tempfile.mkdtemp(prefix="nq-cluster-"))
    folder.chmod(0o711)
    try:
        with cluster.shared(folder) as pieces:
            yield pieces
    except UiError as error:
        if "is not installed" not in str(error):
            raise
        pytest.skip(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The port of the vendors' stand-ins, which all hosts ask."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with endpoints(build_settings(data_dir=folder)):
        yield str(json.loads((folder / "sandbox" / "sandbox.json").read_text())["port"])


@pytest.fixture
def hosts(shared: cluster.Shared, stand_ins: str, tmp_path: Path) -> Callable[..., HostFactory]:
    """Makes hosts of a new cluster; takes variables that all of them have."""
    return lambda **common: new_hosts(shared, tmp_path, NQ_SANDBOX_PORT=stand_ins, **common)
