"""The prediction server: bare ASGI, one process, predictions and intake only."""
