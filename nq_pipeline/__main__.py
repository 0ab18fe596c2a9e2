"""`python -m nq_pipeline` is `nq`."""

from nq_pipeline.cli import main

main()
