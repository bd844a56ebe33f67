"""The oracle of the time rules, and the suites that every adapter must pass."""
