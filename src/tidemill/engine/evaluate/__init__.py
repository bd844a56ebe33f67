"""Evaluation: metrics with intervals, splits, profiles, and the gate."""
