"""Examples and labels, the ledger of predictions, and both many rows at a time."""
