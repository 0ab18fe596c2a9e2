"""The whole house at a glance, for Dagster to load."""

from nq_pipeline.orchestration.build import build_defs

defs = build_defs()
