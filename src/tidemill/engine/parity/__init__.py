"""Parity: predictions derived again, differences explained, and the proof before promotion."""
