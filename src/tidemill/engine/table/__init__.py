"""Tables: ingest and contract, cleaning, derived tables, and what of a table is visible when."""
