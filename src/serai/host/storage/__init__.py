"""A host's pools, volumes and images."""
