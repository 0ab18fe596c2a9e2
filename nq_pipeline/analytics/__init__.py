"""Tables computed from chains and trades: pricing, metrics, trade pressure, and checks of them."""
