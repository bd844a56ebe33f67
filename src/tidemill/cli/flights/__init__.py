"""The flagship project: its declared file, its feeds, and the picture of it running."""
