"""The ports of a host's VMs on its bridges."""
