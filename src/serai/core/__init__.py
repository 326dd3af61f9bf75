"""Decisions: pure functions and state tables; no async, no I/O, no clock."""
