"""`nq ui`: Dagster's web server, daemon and runs as one process group, over one Dagster instance.

Nothing here imports Dagster, which runs in separate processes.
"""
