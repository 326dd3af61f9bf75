"""Long actions of the controller, one a file: each a list of named steps with their undo."""

from __future__ import annotations

from serai.controller.jobs import Workflow
from serai.controller.workflows import cleaning, edit, growth, lifecycle, migrate, resources
from serai.controller.workflows.common import Office


def workflows(office: Office) -> dict[str, Workflow]:
    """Every kind of job that there is."""
    rows = [
        *lifecycle.workflows(office),
        migrate.workflow(office),
        *edit.workflows(office),
        *resources.workflows(office),
        *growth.workflows(office),
        *cleaning.workflows(office),
    ]
    return {row.kind: row for row in rows}
