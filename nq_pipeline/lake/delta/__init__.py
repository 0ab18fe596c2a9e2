"""The Delta format of a table: `files` keeps its versions, `types` converts its rows."""
