"""Serai: virtual machines on machines you own, and their moves."""
