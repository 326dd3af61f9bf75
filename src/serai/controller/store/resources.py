"""What all resources have in common: read, page, insert, replace, status, delete.

A resource is looked up by id (`get`); by what a user wrote, a name or an id, only where the API takes it in (`find`,
`identify`). A page holds documents as they are stored; a single resource is validated into its model. Writing needs a
transaction: connections for reading refuse to write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Row, Table, delete, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serai.controller.store.tables import labels
from serai.schema.errors import ConflictError, NotFoundError
from serai.schema.ids import is_id
from serai.schema.resource import Frozen, Resource

ModelT = TypeVar("ModelT", bound=Resource[Any, Any])
IdT = TypeVar("IdT", bound=str)

Document = dict[str, Any]
"""A resource, job or event as JSON: dicts, lists, strings, numbers."""


@dataclass(frozen=True)
class RawPage:
    """One page of a list; `next` is the cursor of the following page."""

    items: list[Document]
    next: str | None


class Resources(Generic[ModelT, IdT]):
    """Queries on one resource table; a noun's own queries are in its subclass."""

    kind: ClassVar[str]
    table: ClassVar[Table]
    reference: ClassVar[str] = "id"
    """The column that other resources refer by."""
    model: type[ModelT]

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    def columns(self, item: ModelT) -> dict[str, Any]:
        """The copies that lists filter by."""
        raise NotImplementedError

    async def get(self, resource_id: IdT, field: str | None = None) -> ModelT:
        """By id. Raises NotFoundError, which names `field` (the kind unless given)."""
        item = await self.seek(resource_id)
        if item is None:
            raise self.missing(resource_id, field)
        return item

    async def seek(self, resource_id: IdT) -> ModelT | None:
        """By id; None if there is none."""
        return await self._one(self.table.c.id == resource_id)

    async def named(self, name: str) -> ModelT | None:
        """By name; None if there is none."""
        return await self._one(self.table.c.name == name)

    async def find(self, text: str, field: str | None = None) -> ModelT:
        """By what a user wrote: an id, or else a name. Raises NotFoundError, which names `field`."""
        item = await self._one((self.table.c.id if is_id(text) else self.table.c.name) == text)
        if item is None:
            raise self.missing(text, field)
        return item

    async def identify(self, texts: Collection[str]) -> dict[str, str]:
        """What users wrote, ids or names, to what a reference holds; what there is not is left out."""
        table, ids = self.table.c, {text for text in texts if is_id(text)}
        query = select(table.id, table.name).where(or_(table.id.in_(ids), table.name.in_(set(texts) - ids)))
        rows = (await self.connection.execute(query)).mappings().all()
        by_name, by_id = ({row[key]: row[self.reference] for row in rows} for key in ("name", "id"))
        return by_name | by_id

    def missing(self, text: str, field: str | None = None) -> NotFoundError:
        """The refusal of a name or id that nothing has."""
        return NotFoundError(
            f"there is no {self.kind} {text}",
            field=field or self.kind,
            value=text,
            remedy=f"See which there are: serai {self.kind} list.",
        )

    async def all(self, *where: ColumnElement[bool]) -> list[ModelT]:
        """Every one that meets the conditions, by name."""
        query = select(self.table).where(*where).order_by(self.table.c.name)
        return [self.parse(row) for row in await self.connection.execute(query)]

    async def page(self, limit: int, cursor: str | None, narrow: Mapping[str, str]) -> RawPage:
        """Up to `limit` by name, those after `cursor` (the last name of the page before).

        `narrow`: columns to what they are to hold; `label` to `key` or `key=value`.
        """
        # One more than asked for says whether there is a next page.
        where = [self._condition(*one) for one in narrow.items()]
        query = select(self.table).where(*where).order_by(self.table.c.name).limit(limit + 1)
        if cursor is not None:
            query = query.where(self.table.c.name > cursor)
        rows = (await self.connection.execute(query)).all()
        following = str(rows[limit - 1].name) if len(rows) > limit else None
        return RawPage([self._document(row) for row in rows[:limit]], following)

    def _condition(self, column: str, text: str) -> ColumnElement[bool]:
        if column != "label":
            return self.table.c[column] == text
        key, given, value = text.partition("=")
        query = exists().where(labels.c.kind == self.kind, labels.c.resource_id == self.table.c.id, labels.c.key == key)
        return query.where(labels.c.value == value) if given else query

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
            raise self.missing(item.id)
        await self._write_labels(item)

    async def set_status(self, resource_id: IdT, status: Frozen) -> ModelT:
        """Write the status alone and return the whole. Raises NotFoundError."""
        item = (await self.get(resource_id)).model_copy(update={"status": status})
        values = {"status": status.model_dump(mode="json"), **self.columns(item)}
        await self.connection.execute(update(self.table).where(self.table.c.id == resource_id).values(**values))
        return item

    async def update_status(self, resource_id: IdT, **fields: Any) -> ModelT:
        """Change some fields of the status and return the whole. Raises NotFoundError."""
        item = await self.get(resource_id)
        return await self.set_status(resource_id, item.status.model_copy(update=fields))

    async def set_spec(self, resource_id: IdT, spec: Frozen) -> ModelT:
        """Write another spec: the generation grows by one. Raises NotFoundError."""
        item = await self.get(resource_id)
        changed = item.model_copy(update={"spec": spec, "generation": item.generation + 1})
        await self.replace(changed)
        return changed

    async def delete(self, resource_id: IdT) -> None:
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
        return self.model.model_validate(self._document(row))

    def _document(self, row: Row[Any]) -> Document:
        return {
            "kind": self.kind,
            "name": row.name,
            "id": row.id,
            "generation": row.generation,
            "labels": row.labels,
            "description": row.description,
            "created": row.created,
            "spec": row.spec,
            "status": row.status,
        }

    async def _one(self, where: ColumnElement[bool]) -> ModelT | None:
        row = (await self.connection.execute(select(self.table).where(where))).first()
        return None if row is None else self.parse(row)

    def _values(self, item: ModelT) -> dict[str, Any]:
        return {
            "name": item.name,
            "generation": item.generation,
            "labels": item.labels,
            "description": item.description,
            "created": item.created.isoformat(),
            "spec": item.spec.model_dump(mode="json"),
            "status": item.status.model_dump(mode="json"),
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
