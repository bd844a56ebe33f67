"""Monitoring: drift, quality, and canaries."""
