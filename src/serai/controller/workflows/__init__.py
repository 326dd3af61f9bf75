"""Long actions of the controller, one a file: each a list of named steps with their undo."""

from __future__ import annotations

from typing import Any

from serai.controller.jobs.workflow import Workflow
from serai.controller.workflows import edit, growth, lifecycle, migrate, resources

WORKFLOWS: dict[str, Workflow[Any, Any]] = {
    row.kind: row
    for row in (
        lifecycle.CREATE_VM,
        lifecycle.START_VM,
        lifecycle.STOP_VM,
        lifecycle.RESTART_VM,
        lifecycle.PAUSE_VM,
        lifecycle.RESUME_VM,
        lifecycle.RESET_VM,
        lifecycle.DELETE_VM,
        migrate.MIGRATE_VM,
        edit.EDIT_VM,
        edit.CLONE_VM,
        resources.CREATE_VOLUME,
        growth.EDIT_VOLUME,
        resources.DELETE_VOLUME,
        resources.CREATE_POOL,
        resources.DELETE_POOL,
        resources.CREATE_IMAGE,
        resources.DELETE_IMAGE,
        resources.TAKE_UPLINK,
        resources.CONFIRM_UPLINK,
    )
}
"""Every kind of job that there is."""
