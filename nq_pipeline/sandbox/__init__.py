"""Stand-ins for all four vendors on loopback; they serve one synthetic market, with faults on demand."""
