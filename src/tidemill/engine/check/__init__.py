"""Check and plan: what is wrong with a declaration, and what it would change."""
