"""What all resources have in common: read, page, insert, replace, status, delete.

Rows are turned to JSON by joining the stored texts; a list never parses them. One resource is parsed into its model.
Writing needs a transaction: connections for reading refuse to write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Row, Table, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store.tables import labels
from serai.schema.errors import ConflictError, NotFoundError
from serai.schema.resource import Frozen, Resource

ModelT = TypeVar("ModelT", bound=Resource[Any, Any])


@dataclass(frozen=True)
class RawPage:
    """One page of a list, each item as JSON text; `next` is the cursor of the following page."""

    items: list[str]
    next: str | None

    def body(self) -> bytes:
        """The page as the API sends it."""
        return f'{{"items":[{",".join(self.items)}],"next":{json.dumps(self.next)}}}'.encode()


def render(kind: str, row: Row[Any]) -> str:
    """A resource's JSON from its row; the first eight columns are the same in every resource table."""
    return (
        f'{{"kind":"{kind}","name":"{row.name}","id":"{row.id}","generation":{row.generation},"labels":{row.labels},'
        f'"description":{json.dumps(row.description)},"created":"{row.created}","spec":{row.spec},'
        f'"status":{row.status}}}'
    )


class Resources(Generic[ModelT]):
    """Queries on one resource table; a noun's own queries are in its subclass."""

    kind: ClassVar[str]
    table: ClassVar[Table]
    model: type[ModelT]

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    def columns(self, item: ModelT) -> dict[str, Any]:
        """The copies that lists filter by."""
        raise NotImplementedError

    async def seek(self, name: str) -> ModelT | None:
        """By name, else by id; None if there is none."""
        table = self.table.c
        query = select(self.table).where(or_(table.name == name, table.id == name)).order_by(table.id == name)
        row = (await self.connection.execute(query)).first()
        return None if row is None else self.parse(row)

    async def find(self, name: str, field: str | None = None) -> ModelT:
        """By name, else by id. Raises NotFoundError, which names `field` (the kind unless given)."""
        item = await self.seek(name)
        if item is None:
            raise NotFoundError(
                f"there is no {self.kind} {name}",
                field=field or self.kind,
                value=name,
                remedy=f"See which there are: serai {self.kind} list.",
            )
        return item

    async def get(self, resource_id: str) -> ModelT:
        """By id alone. Raises NotFoundError."""
        row = (await self.connection.execute(select(self.table).where(self.table.c.id == resource_id))).first()
        if row is None:
            raise NotFoundError(f"there is no {self.kind} with id {resource_id}", field="id", value=resource_id)
        return self.parse(row)

    async def all(self, *where: ColumnElement[bool]) -> list[ModelT]:
        """Every one that meets the conditions, by name."""
        query = select(self.table).where(*where).order_by(self.table.c.name)
        return [self.parse(row) for row in await self.connection.execute(query)]

    async def page(self, limit: int, cursor: str | None, *where: ColumnElement[bool]) -> RawPage:
        """Up to `limit` by name, those after `cursor` (the last name of the page before)."""
        rows = await self._rows(limit, cursor, where)
        return RawPage([render(self.kind, row) for row in rows[:limit]], _next(rows, limit))

    async def models(self, limit: int, cursor: str | None) -> tuple[list[ModelT], str | None]:
        """The same page as models, for kinds whose status is partly computed."""
        rows = await self._rows(limit, cursor, ())
        return [self.parse(row) for row in rows[:limit]], _next(rows, limit)

    async def count(self, *where: ColumnElement[bool]) -> int:
        """How many meet the conditions."""
        return (await self.connection.execute(select(func.count()).select_from(self.table).where(*where))).scalar_one()

    def labelled(self, key: str, value: str | None) -> ColumnElement[bool]:
        """The condition that an item has a label (of that value, unless none is asked for)."""
        query = exists().where(labels.c.kind == self.kind, labels.c.resource_id == self.table.c.id, labels.c.key == key)
        return query if value is None else query.where(labels.c.value == value)

    async def insert(self, item: ModelT) -> None:
        """Write a new one. Raises ConflictError if the name is taken."""
        try:
            await self.connection.execute(insert(self.table).values(id=item.id, **self._values(item)))
        except IntegrityError as error:
            raise self.taken(item.name) from error
        await self._write_labels(item)

    async def replace(self, item: ModelT) -> None:
        """Write all fields of one that exists. Raises ConflictError for a taken name, NotFoundError."""
        query = update(self.table).where(self.table.c.id == item.id).values(**self._values(item))
        try:
            changed = (await self.connection.execute(query)).rowcount
        except IntegrityError as error:
            raise self.taken(item.name) from error
        if not changed:
            raise NotFoundError(f"there is no {self.kind} with id {item.id}", field="id", value=item.id)
        await self._write_labels(item)

    async def set_status(self, resource_id: str, status: Frozen) -> ModelT:
        """Write the status alone and return the whole. Raises NotFoundError."""
        item = (await self.get(resource_id)).model_copy(update={"status": status})
        values = {"status": status.model_dump_json(), **self.columns(item)}
        await self.connection.execute(update(self.table).where(self.table.c.id == resource_id).values(**values))
        return item

    async def update_status(self, resource_id: str, **fields: Any) -> ModelT:
        """Change some fields of the status and return the whole. Raises NotFoundError."""
        item = await self.get(resource_id)
        return await self.set_status(resource_id, item.status.model_copy(update=fields))

    async def set_spec(self, resource_id: str, spec: Frozen) -> ModelT:
        """Write another spec: the generation grows by one. Raises NotFoundError."""
        item = await self.get(resource_id)
        changed = item.model_copy(update={"spec": spec, "generation": item.generation + 1})
        await self.replace(changed)
        return changed

    async def delete(self, resource_id: str) -> None:
        """Take it away; harmless if it is not there."""
        await self.connection.execute(delete(self.table).where(self.table.c.id == resource_id))
        await self._drop_labels(resource_id)

    def taken(self, name: str, field: str = "name") -> ConflictError:
        """The refusal of a name that another one has."""
        return ConflictError(
            f"there is {'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind} {name} already",
            field=field,
            value=name,
            remedy="Choose another name.",
        )

    def parse(self, row: Row[Any]) -> ModelT:
        """A row as its model."""
        return self.model.model_validate_json(render(self.kind, row))

    async def _rows(self, limit: int, cursor: str | None, where: Sequence[ColumnElement[bool]]) -> Sequence[Row[Any]]:
        # One more than asked for says whether there is a next page.
        query = select(self.table).where(*where).order_by(self.table.c.name).limit(limit + 1)
        if cursor is not None:
            query = query.where(self.table.c.name > cursor)
        return (await self.connection.execute(query)).all()

    def _values(self, item: ModelT) -> dict[str, Any]:
        return {
            "name": item.name,
            "generation": item.generation,
            "labels": json.dumps(item.labels),
            "description": item.description,
            "created": item.created.isoformat(),
            "spec": item.spec.model_dump_json(),
            "status": item.status.model_dump_json(),
            **self.columns(item),
        }

    async def _write_labels(self, item: ModelT) -> None:
        await self._drop_labels(item.id)
        if item.labels:
            rows = [{"kind": self.kind, "resource_id": item.id, "key": k, "value": v} for k, v in item.labels.items()]
            await self.connection.execute(insert(labels), rows)

    async def _drop_labels(self, resource_id: str) -> None:
        query = delete(labels).where(labels.c.kind == self.kind, labels.c.resource_id == resource_id)
        await self.connection.execute(query)


def _next(rows: Sequence[Row[Any]], limit: int) -> str | None:
    return str(rows[limit - 1].name) if len(rows) > limit else None
