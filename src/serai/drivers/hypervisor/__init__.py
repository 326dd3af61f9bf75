"""Running virtual machines: QEMU over QMP, and a fake that keeps the same contract."""
