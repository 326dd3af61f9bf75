"""All commands that the controller sends to hosts and VMs, a noun a file; each is declared once, as a `Command`."""

from __future__ import annotations

from serai.schema.commands import host, image, migration, pool, uplink, vm, volume
from serai.schema.commands.base import AnyCommand

COMMANDS: tuple[AnyCommand, ...] = (
    host.HOST_INTRODUCE,
    vm.VM_START,
    vm.VM_RELEASE,
    vm.VM_STOP,
    vm.VM_RESET,
    vm.VM_PAUSE,
    vm.VM_RESUME,
    vm.VM_CONFIGURE,
    vm.VM_DOCUMENT,
    migration.MIGRATION_PREPARE,
    migration.MIGRATION_START,
    migration.MIGRATION_CANCEL,
    migration.MIGRATION_WITHDRAW,
    migration.MIGRATION_ABANDON,
    pool.POOL_OPEN,
    pool.POOL_CLOSE,
    volume.VOLUME_CREATE,
    volume.VOLUME_DELETE,
    volume.VOLUME_GROW,
    volume.VOLUME_MEASURE,
    volume.VOLUME_ADMIT,
    volume.VOLUME_REFUSE,
    image.IMAGE_CREATE,
    image.IMAGE_FETCH,
    image.IMAGE_DELETE,
    uplink.UPLINK_TAKE,
    uplink.UPLINK_CONFIRM,
)
BY_NAME = {command.name: command for command in COMMANDS}
