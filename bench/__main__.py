"""`make bench`: every benchmark, as ratios measured in one run on this machine."""

from __future__ import annotations

from bench import (
    bench_asof,
    bench_barchart,
    bench_board,
    bench_capture,
    bench_capture_log,
    bench_cluster,
    bench_commits,
    bench_convert,
    bench_history,
    bench_pricing,
    bench_publish,
    bench_report,
    bench_run,
    bench_serve,
    bench_surface,
)

for benchmark in (
    bench_asof,
    bench_barchart,
    bench_capture_log,
    bench_convert,
    bench_pricing,
    bench_history,
    bench_surface,
    bench_publish,
    bench_commits,
    bench_capture,
    bench_board,
    bench_run,
    bench_report,
    bench_serve,
    bench_cluster,
):
    title = (benchmark.__doc__ or benchmark.__name__).splitlines()[0].rstrip(".")
    print(f"\n== {title} ==")
    benchmark.main()
