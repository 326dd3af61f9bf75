"""What a new volume may be: whole sectors, with room in its pool, and for the image that it starts with."""

from __future__ import annotations

from serai.schema.errors import CapacityError, InvalidError
from serai.schema.image import Image
from serai.schema.units import format_size
from serai.schema.volume import Pool

SECTOR = 512


def check_room(pool: Pool, size: int, field: str) -> None:
    """Raises InvalidError for half a sector, CapacityError if the pool has less than `size` bytes free.

    A pool that never reported is not judged.
    """
    if size % SECTOR:
        raise InvalidError(
            f"a volume is whole sectors of {SECTOR} bytes",
            field=field,
            value=size,
            remedy="Give a size such as 4G or 512M.",
        )
    if pool.status.total and size > pool.status.free:
        raise CapacityError(
            f"pool {pool.name} has only {format_size(pool.status.free)} free",
            field=field,
            value=format_size(size),
            remedy="Ask for less, delete volumes, or use another pool: serai pool list.",
        )


def check_holds(image: Image, size: int, size_field: str, image_field: str) -> None:
    """Raises InvalidError unless a volume of `size` bytes can start with the image's content."""
    if image.status.manifest is None:
        return
    if image.disk_size is None:
        raise InvalidError(
            f"image {image.name} is a kernel, not a disk", field=image_field, value=image.name, remedy="Leave it out."
        )
    if size < image.disk_size:
        raise InvalidError(
            f"image {image.name} needs {format_size(image.disk_size)}",
            field=size_field,
            value=format_size(size),
            remedy=f"Ask for {format_size(image.disk_size)} or more.",
        )
