"""cloud-init NoCloud seeds: the ISO with the label CIDATA that a guest reads at its first boot.

The three documents come from the controller (`schema.launch.Seed`); here they become a file. See cloud-init's
documentation of the NoCloud data source.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from serai.lib.process import run
from serai.schema.launch import Seed


async def write_seed(seed: Seed, path: Path) -> None:
    """Write the ISO, 0600, whole or not at all. User data may hold passwords, so nobody else may read it.

    QEMU gets it as an open descriptor. Raises ProcessError, ProgramMissingError (xorriso).
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".seed-", dir=path.parent) as scratch_name:
        scratch = Path(scratch_name)
        documents = scratch / "documents"
        documents.mkdir()
        for name, text in (
            ("user-data", seed.user_data),
            ("meta-data", seed.meta_data),
            ("network-config", seed.network_config),
        ):
            (documents / name).write_text(text, encoding="utf-8")
        image = scratch / "seed.iso"
        await run(
            ["xorriso", "-as", "mkisofs", "-quiet", "-V", "CIDATA", "-J", "-r", "-o", str(image), str(documents)],
            timeout=30,
        )
        os.chmod(image, 0o600)
        image.rename(path)
