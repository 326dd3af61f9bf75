"""Several hosts on one machine: namespaces, links, probes, guest workloads."""
