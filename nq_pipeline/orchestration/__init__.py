"""The only room that knows Dagster: assets, checks, jobs and schedules around the library.

What to ask, how to judge and what to write is decided below this floor; here it is only wired.
"""
