"""Measurements, each with the bare baseline beside it in the same run."""
