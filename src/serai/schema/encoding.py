"""How models become the JSON of the bus and of a host's journal, secrets included.

A field of type `Secret` is masked in every other dump, and in `repr`. The bus is TLS with permissions per identity, the
journal belongs to root, and neither is logged.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, PlainSerializer, SecretStr, SerializationInfo, ValidationError

from serai.schema.errors import InvalidError

_REVEAL = {"secrets": "reveal"}


def _write(secret: SecretStr, info: SerializationInfo) -> str:
    return secret.get_secret_value() if info.context == _REVEAL else str(secret)


Secret = Annotated[SecretStr, PlainSerializer(_write, when_used="json")]

ModelT = TypeVar("ModelT", bound=BaseModel)


def encode(model: BaseModel) -> bytes:
    """JSON with the secrets written out."""
    return model.model_dump_json(context=_REVEAL).encode()


def to_dict(model: BaseModel) -> dict[str, Any]:
    """What `encode` writes, as a dict of JSON values."""
    return model.model_dump(mode="json", context=_REVEAL)


def invalid(error: ValidationError, what: str) -> InvalidError:
    """The first complaint about `what` was received; `field` is its path in there."""
    first = error.errors()[0]
    return InvalidError(f"{what}: {first['msg']}", field=".".join(str(part) for part in first["loc"]))


def parse(model: type[ModelT], payload: bytes, subject: str) -> ModelT:
    """What came over the bus on a subject. Raises InvalidError."""
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise invalid(error, f"not a {model.__name__} on {subject}") from error
