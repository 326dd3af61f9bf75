"""The entry points, the only rooms that may see all others."""
