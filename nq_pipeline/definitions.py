"""The Dagster definitions that `workspace.yaml` loads."""

from nq_pipeline.orchestration.build import build_defs

defs = build_defs()
