"""`nq`, the command line. Each command makes a library call and prints the result."""

from __future__ import annotations

import click

from nq_pipeline.cli import capture, export, operate, query, run, serve, spend
from nq_pipeline.cli.exit_codes import EXIT_CODES


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nq_pipeline", prog_name="nq")
def main() -> None:
    """Options on E-mini Nasdaq-100 futures: four vendors' chains in one Parquet lake.

    Without credentials everything runs in the sandbox: stand-ins on this machine serve a
    synthetic market. For real data, set NQ_ENVIRONMENT=live and the vendors' keys (see
    .env.example).
    """


for command in (
    run.run,
    *(query.sql, query.report, query.tables, export.export),
    *(capture.capture, capture.verify, capture.convert),
    serve.serve,
    *(spend.budget, spend.backfill),
    *(operate.doctor, operate.alert, operate.retention, operate.repair, operate.lake),
    *(operate.ui, operate.board, operate.sandbox, operate.settings),
):
    main.add_command(command)
