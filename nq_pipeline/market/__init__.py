"""Options on futures: products, contracts, symbols, sessions, rates, pricing. Pure, no I/O."""
