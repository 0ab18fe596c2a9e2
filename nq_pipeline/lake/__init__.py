"""Parquet on disk: schemas, atomic writes, manifests, compaction, the raw archive, the DuckDB catalog."""
