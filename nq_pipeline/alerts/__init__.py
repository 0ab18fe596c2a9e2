"""Alerts: written to a file, sent to a webhook if one is configured, and not repeated without need."""
