"""Long actions of the controller, one a file: each a list of named steps with their undo."""

from __future__ import annotations

from typing import Any

from serai.controller.jobs.workflow import Workflow
from serai.controller.workflows import (
    clone,
    create,
    delete,
    edit,
    growth,
    images,
    migrate,
    pools,
    restart,
    signals,
    start,
    stop,
    uplinks,
    volumes,
)

WORKFLOWS: dict[str, Workflow[Any, Any]] = {
    row.kind: row
    for row in (
        create.CREATE_VM,
        start.START_VM,
        stop.STOP_VM,
        restart.RESTART_VM,
        signals.PAUSE_VM,
        signals.RESUME_VM,
        signals.RESET_VM,
        delete.DELETE_VM,
        migrate.MIGRATE_VM,
        edit.EDIT_VM,
        clone.CLONE_VM,
        volumes.CREATE_VOLUME,
        growth.EDIT_VOLUME,
        volumes.DELETE_VOLUME,
        pools.CREATE_POOL,
        pools.DELETE_POOL,
        images.CREATE_IMAGE,
        images.DELETE_IMAGE,
        uplinks.TAKE_UPLINK,
        uplinks.CONFIRM_UPLINK,
    )
}
"""Every kind of job that there is."""
