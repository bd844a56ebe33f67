"""Inner loops over plain arrays. Nothing here knows about declarations, storage or time zones."""
