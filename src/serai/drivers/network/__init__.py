"""Network drivers: bridges, taps and announcements on one host."""
