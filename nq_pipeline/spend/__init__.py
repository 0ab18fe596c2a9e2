"""Money: the ledger of the plan's fee and of metered requests, and the budgets it keeps."""
