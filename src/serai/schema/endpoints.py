"""The REST table, declared once: the server's routes and the client's calls both derive from it.

`{name}` in a path takes a resource's name or id. `job=True` endpoints answer `202` with a `Job` and a `Location`.
Lists take `limit` (1 to 1000, 100 unless told) and `cursor`, and answer a `Page`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from serai.schema.host import Host, HostEdit, HostFence
from serai.schema.image import Image, ImageCreate
from serai.schema.job import Event, Job
from serai.schema.network import Network, NetworkCreate, UplinkTake
from serai.schema.vm import Vm, VmClone, VmCreate, VmEdit, VmMigrate, VmStart, VmStop
from serai.schema.volume import Pool, PoolCreate, Volume, VolumeCreate, VolumeEdit

Method = Literal["GET", "POST", "PATCH", "DELETE", "PUT"]


@dataclass(frozen=True)
class Endpoint:
    """One route. `result` none: no body (204). `query` lists optional query parameters beyond paging."""

    name: str
    method: Method
    path: str
    summary: str
    body: type[BaseModel] | None = None
    result: type[BaseModel] | None = None
    job: bool = False
    paged: bool = False
    query: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        """The kind of resource that it is about."""
        return self.name.partition(".")[0]

    @property
    def status(self) -> int:
        """What it answers with when all is well."""
        if self.job:
            return 202
        if self.result is None:
            return 204
        return 201 if self.name.endswith(".create") else 200


def _crud(
    noun: str, plural: str, model: type[BaseModel], create: type[BaseModel] | None, *, query: tuple[str, ...] = ()
) -> list[Endpoint]:
    rows = [
        Endpoint(f"{noun}.list", "GET", f"/v1/{plural}", f"List {plural}", result=model, paged=True, query=query),
        Endpoint(f"{noun}.show", "GET", f"/v1/{plural}/{{name}}", f"Show one {noun}", result=model),
    ]
    if create is not None:
        rows.append(Endpoint(f"{noun}.create", "POST", f"/v1/{plural}", f"Create a {noun}", create, Job, job=True))
    return rows


ENDPOINTS: dict[str, Endpoint] = {
    row.name: row
    for row in [
        *_crud("host", "hosts", Host, None),
        Endpoint("host.edit", "PATCH", "/v1/hosts/{name}", "Change what a host is for", HostEdit, Host),
        Endpoint("host.fence", "POST", "/v1/hosts/{name}/fence", "Say that a host is off", HostFence, Host),
        Endpoint("host.delete", "DELETE", "/v1/hosts/{name}", "Forget a host that is gone"),
        Endpoint(
            "host.take", "POST", "/v1/hosts/{name}/uplink", "Put a bridge on an uplink", UplinkTake, Job, job=True
        ),
        Endpoint("host.confirm", "POST", "/v1/hosts/{name}/uplink/confirm", "Keep the bridge", None, Job, job=True),
        *_crud("pool", "pools", Pool, PoolCreate),
        Endpoint(
            "pool.delete", "DELETE", "/v1/pools/{name}", "Delete an empty pool", None, Job, job=True, query=("force",)
        ),
        *_crud("volume", "volumes", Volume, VolumeCreate, query=("pool", "vm")),
        Endpoint("volume.edit", "PATCH", "/v1/volumes/{name}", "Grow or describe a volume", VolumeEdit, Job, job=True),
        Endpoint(
            "volume.delete", "DELETE", "/v1/volumes/{name}", "Delete a volume", None, Job, job=True, query=("force",)
        ),
        *_crud("image", "images", Image, ImageCreate),
        Endpoint(
            "image.delete", "DELETE", "/v1/images/{name}", "Delete an image", None, Job, job=True, query=("force",)
        ),
        *_crud("network", "networks", Network, None),
        Endpoint("network.create", "POST", "/v1/networks", "Create a network", NetworkCreate, Network),
        Endpoint("network.delete", "DELETE", "/v1/networks/{name}", "Delete an unused network"),
        *_crud("vm", "vms", Vm, VmCreate, query=("host", "state", "label")),
        Endpoint("vm.edit", "PATCH", "/v1/vms/{name}", "Change a VM", VmEdit, Job, job=True),
        Endpoint("vm.delete", "DELETE", "/v1/vms/{name}", "Delete a VM", None, Job, job=True, query=("force",)),
        Endpoint("vm.start", "POST", "/v1/vms/{name}/start", "Start a VM", VmStart, Job, job=True),
        Endpoint("vm.stop", "POST", "/v1/vms/{name}/stop", "Shut a VM down", VmStop, Job, job=True),
        Endpoint("vm.restart", "POST", "/v1/vms/{name}/restart", "Stop a VM and start it", VmStop, Job, job=True),
        Endpoint("vm.reset", "POST", "/v1/vms/{name}/reset", "Reset a VM", None, Job, job=True),
        Endpoint("vm.pause", "POST", "/v1/vms/{name}/pause", "Pause a VM's vCPUs", None, Job, job=True),
        Endpoint("vm.resume", "POST", "/v1/vms/{name}/resume", "Resume a paused VM", None, Job, job=True),
        Endpoint("vm.migrate", "POST", "/v1/vms/{name}/migrate", "Move a running VM", VmMigrate, Job, job=True),
        Endpoint("vm.clone", "POST", "/v1/vms/{name}/clone", "Copy a stopped VM", VmClone, Job, job=True),
        Endpoint(
            "job.list", "GET", "/v1/jobs", "List jobs, newest first", result=Job, paged=True, query=("state", "target")
        ),
        Endpoint("job.show", "GET", "/v1/jobs/{name}", "Show one job", result=Job),
        Endpoint("job.cancel", "POST", "/v1/jobs/{name}/cancel", "Ask a job to stop and undo", None, Job),
        Endpoint(
            "event.list",
            "GET",
            "/v1/events",
            "Events after a sequence number",
            result=Event,
            paged=True,
            query=("after", "kind", "resource", "last"),
        ),
    ]
}
"""Beside these, written by hand because they stream: `GET /v1/events` with `Accept: text/event-stream` (SSE),
`GET /v1/vms/{name}/console` (WebSocket), `PUT /v1/images/{name}/content` (upload), `GET /v1/health`."""
