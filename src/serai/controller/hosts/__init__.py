"""The controller's end of the bus: commands out, reports in, and streams between the API and hosts."""
