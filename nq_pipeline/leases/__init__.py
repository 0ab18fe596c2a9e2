"""Who may do what only one may do, whichever machine it is on: leases in the ledger's database."""
