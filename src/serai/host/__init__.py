"""The host agent: makes its machine match what is desired, reports what is."""
