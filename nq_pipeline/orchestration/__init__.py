"""The only package that imports Dagster: assets, checks, jobs, schedules and sensors.

The packages below decide what to fetch, how to judge it and what to write.
"""
