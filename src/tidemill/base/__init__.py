"""Errors, clock, hashing and schema: what every other layer may use."""
