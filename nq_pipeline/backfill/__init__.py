"""Days of Databento's history: bought once, checked against the vendor's counts, and stored in the lake."""
