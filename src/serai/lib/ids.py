"""Identifiers made by chance: short enough to type, long enough never to meet twice in one installation."""

import secrets
from collections.abc import Callable
from typing import TypeVar, overload

IdT = TypeVar("IdT", bound=str)


@overload
def new_id() -> str: ...


@overload
def new_id(kind: Callable[[str], IdT]) -> IdT: ...


def new_id(kind: Callable[[str], str] = str) -> str:
    """Return 12 hexadecimal characters (48 random bits), as an id of this kind (`schema.ids`)."""
    return kind(secrets.token_hex(6))


def new_secret() -> str:
    """Return a secret of 32 hexadecimal characters (128 random bits), for tokens, tickets and CHAP."""
    return secrets.token_hex(16)
