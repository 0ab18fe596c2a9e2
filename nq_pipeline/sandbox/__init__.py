"""Stand-ins for all four vendors on loopback, showing one synthetic market, with faults on demand."""
