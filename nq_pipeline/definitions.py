"""The Dagster definitions that `workspace.yaml` loads."""

from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.cluster.instance import check_instance

check_instance()
defs = build_defs()
