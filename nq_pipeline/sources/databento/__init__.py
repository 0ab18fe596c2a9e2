"""Databento: metered chains and history of CME Globex."""
