"""Stand-ins for all four vendors on loopback, showing one synthetic NQ market, with faults on demand."""
