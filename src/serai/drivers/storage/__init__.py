"""Pools, volumes and their export to other hosts; base.py is the contract."""
