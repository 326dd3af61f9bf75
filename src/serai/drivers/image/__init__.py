"""Image drivers: guests built from Debian packages, images imported, cloud-init seeds, and a host's image store."""
