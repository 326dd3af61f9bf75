"""Live migrations: the source's end, the destination's end, and the manager of both."""
