"""Days of Databento's history, bought once, proven whole, and brought to the lake's tables."""
