"""The VMs of a host: one agent for each, and the supervisor that owns them."""
