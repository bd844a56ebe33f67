"""What the engine asks of the outside world: one short Protocol a file."""
