"""The loop worker: the only process that commits tables, online state and decisions."""
