"""Names that Dagster stores: asset keys and run tags. They are an interface, so they stay."""

from __future__ import annotations

import dagster as dg

from nq_pipeline.backfill.scope import SCHEMAS
from nq_pipeline.sources.registry import SOURCE_NAMES

SOURCE_CHAINS = {name: dg.AssetKey([name, "option_chain"]) for name in SOURCE_NAMES}
CHOSEN_CHAIN = dg.AssetKey(["nq", "option_chain"])
PRICING = dg.AssetKey(["nq", "option_pricing"])
SMILE = dg.AssetKey(["nq", "iv_smile"])
SURFACE = dg.AssetKey(["nq", "surface_slices"])
ARBITRAGE = dg.AssetKey(["nq", "surface_arbitrage"])
PROFILE = dg.AssetKey(["nq", "strike_profile"])
SERIES = dg.AssetKey(["nq", "series_metrics"])
MATURITIES = dg.AssetKey(["nq", "constant_maturity"])
LEVELS = dg.AssetKey(["nq", "gamma_levels"])
OPEN_INTEREST = dg.AssetKey(["nq", "open_interest_change"])
BARS = dg.AssetKey(["nq", "future_bars"])
REPORT = dg.AssetKey(["nq", "report"])
LIVE_TRADES = dg.AssetKey(["databento", "trades"])
CAPTURE_HEALTH = dg.AssetKey(["live", "capture_health"])
PRESSURE = dg.AssetKey(["databento", "trade_pressure"])
HISTORY = {schema: dg.AssetKey(["databento", "history", schema.replace("-", "_")]) for schema in SCHEMAS}
SPEND_LEDGER = dg.AssetKey(["spend", "ledger"])

KIND = "nq/kind"
"""One run of a kind goes at a time (`dagster.yaml`)."""
CAPTURE = "capture"
"""The kind of a live capture."""
READS_LEDGER = "nq/looks_at_ledger"
"""One run that checks the spend ledger goes at a time (`dagster.yaml`). Where two overlap, Dagster shows the
checks as not evaluated, because the later materialization is not the one they judged."""
ENVIRONMENT = "nq/environment"
LEASED = "nq/lease"
"""The environment of a run that holds a lease while its process lives (`cluster.run_leases`)."""
PARTITION = "dagster/partition"
PRIORITY = "dagster/priority"
MAX_RUNTIME = "dagster/max_runtime"
"""Seconds after which Dagster ends a run, as a string. Without it a run whose process died in a power cut
counts as started for ever and holds its place in the queue."""
CAPTURE_HOST = {"dagster-celery/queue": "capture"}
"""Tags of jobs that work on the capture log, which stays on the disk of the host that captures. In a cluster
only that host takes runs from this queue (`deploy/dagster.yaml`); on one machine nothing reads the tag."""
