"""The only room that imports Dagster: it wires the library into assets, checks, jobs, schedules and sensors.

What to ask for, how to judge it and what to write is decided in the rooms below.
"""
