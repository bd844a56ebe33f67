"""Predictions: requests, routes, and the versions that the journal says answer."""
