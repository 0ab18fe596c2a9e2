"""What an option on E-mini Nasdaq-100 futures is: contracts, symbols, sessions. Pure, no I/O."""
