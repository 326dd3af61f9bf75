"""Images."""

from __future__ import annotations

from typing import Any

from serai.controller.store import tables
from serai.controller.store.resources import Resources
from serai.schema.ids import ImageId
from serai.schema.image import Image


class Images(Resources[Image, ImageId]):
    """See `resources.Resources`."""

    kind = "image"
    table = tables.images
    model = Image

    def columns(self, item: Image) -> dict[str, Any]:
        """State."""
        return {"state": item.status.state.value}
