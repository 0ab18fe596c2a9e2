"""The only reader of DBN, Databento's binary encoding: framing, nulls, symbols, Parquet."""
