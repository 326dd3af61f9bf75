"""Tools that know nothing of virtual machines: processes, the bus, certificates, streams, time and tasks."""
