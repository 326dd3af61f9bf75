"""What Serai drives: one folder a kind, each with its contract in base.py and its probe in probe.py."""
