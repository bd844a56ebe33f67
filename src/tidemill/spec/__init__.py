"""Declarations: frozen values that say what a system is. No I/O, no registration, no clock."""
