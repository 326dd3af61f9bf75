"""Serai: virtual machines on machines you own, and their moves."""

__version__ = "0.1.0"
