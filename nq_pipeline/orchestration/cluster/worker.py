"""The Celery application of a cluster's workers.

    celery -A nq_pipeline.orchestration.cluster.worker worker --queues dagster --concurrency 2

Needs `nq_pipeline[cluster]`, the `dagster.yaml` of the cluster in DAGSTER_HOME, and the addresses of Redis in
DAGSTER_CELERY_BROKER_URL and DAGSTER_CELERY_BACKEND_URL. The variables may be in `.env` of the working
directory.
"""

from __future__ import annotations

import os
import subprocess
import sys

from dagster_celery.app import app
from dotenv import load_dotenv

CHECK = "nq_pipeline.orchestration.cluster.instance"
BROKER, BACKEND = "DAGSTER_CELERY_BROKER_URL", "DAGSTER_CELERY_BACKEND_URL"
LONGEST_RUN_S = 8 * 86_400
"""Longer than any `MAX_RUNTIME`: a result that expired would count as a dead task."""

load_dotenv(".env")
if unset := [name for name in (BROKER, BACKEND) if not os.environ.get(name)]:
    sys.exit(f"nq: {' and '.join(unset)} must name a Redis database, e.g. redis://host:6379/0")
# In a process of its own, because runs are forked from this one: the object store's threads, which the check
# starts, would be missing in them.
if subprocess.run([sys.executable, "-m", CHECK]).returncode:
    sys.exit(1)

app.conf.update(
    broker_url=os.environ[BROKER],
    result_backend=os.environ[BACKEND],
    result_expires=LONGEST_RUN_S,
    # A run has a process of its own: the kernel releases its locks when it ends.
    worker_max_tasks_per_child=1,
    # A busy worker reserves no run that another one could begin at once.
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    # Redis hands out a message again that nobody has acknowledged for this long. A task is acknowledged when
    # it starts, so it is not run twice.
    broker_transport_options={"visibility_timeout": LONGEST_RUN_S},
    broker_connection_retry_on_startup=True,
)
