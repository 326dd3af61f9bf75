"""The controller: API, desired state, placement, long jobs. It meets hosts on the bus and clients over HTTP."""
