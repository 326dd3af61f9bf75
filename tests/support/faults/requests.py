"""What the sequence asks of the controller, as the client says it."""

from __future__ import annotations

from tests.support.faults.actions import Action, Verb

from serai.client.http import Client
from serai.schema.errors import NotFoundError
from serai.schema.ids import HostName, PoolId
from serai.schema.job import Job
from serai.schema.vm import DiskSpec, VmEdit, VmMigrate, VmStop

POOL = "shared0"
DISK = 4 << 20
"""Bytes of a VM's disk: its writer is around it in seconds."""
STOP = VmStop(timeout=5.0)
PLAIN = {Verb.RESET: "vm.reset", Verb.PAUSE: "vm.pause", Verb.RESUME: "vm.resume"}


class Requests:
    """`client` waits for a short time only: the controller may stand still."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._newest: dict[str, Job] = {}

    async def ask(self, action: Action, vm: str) -> Job:
        """The job that it leads to. Raises SeraiError for a refusal, and where nobody answers."""
        call = self._client.call
        job: Job
        match action.verb:
            case Verb.MIGRATE:
                job = await call("vm.migrate", vm, body=VmMigrate(to=HostName(action.how)))
            case Verb.START:
                job = await call("vm.start", vm)
            case Verb.STOP | Verb.STOP_BY_FORCE:
                body = STOP if action.verb is Verb.STOP else VmStop(force=True)
                job = await call("vm.stop", vm, body=body)
            case Verb.RESTART:
                job = await call("vm.restart", vm, body=STOP)
            case Verb.EDIT:
                job = await call("vm.edit", vm, body=await self._edit(vm, action.how))
            case Verb.CANCEL:
                newest = self._newest.get(action.target)
                if newest is None:
                    raise NotFoundError("there is no job yet")
                job = await call("job.cancel", newest.id)
            case _:
                job = await call(PLAIN[action.verb], vm)
        self._newest[action.target] = job
        return job

    async def _edit(self, vm: str, how: str) -> VmEdit:
        key, _, value = how.partition("=")
        if key == "cpus":
            return VmEdit(cpus=int(value))
        if key == "description":
            return VmEdit(description=value)
        disks = (await self._client.call("vm.show", vm)).spec.disks[:2]
        if how == "no disk":
            return VmEdit(disks=disks[:1])
        # Another one in the place of the second would need a restart, and keep the VM from moving until then.
        return VmEdit(disks=disks if len(disks) > 1 else [*disks, DiskSpec(pool=PoolId(POOL), size=DISK)])
