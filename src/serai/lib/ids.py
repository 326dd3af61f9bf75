"""Identifiers made by chance: short enough to type, long enough never to meet twice in one installation."""

import secrets


def new_id() -> str:
    """Return 12 hexadecimal characters (48 random bits)."""
    return secrets.token_hex(6)


def new_secret() -> str:
    """Return a secret of 32 hexadecimal characters (128 random bits), for tokens, tickets and CHAP."""
    return secrets.token_hex(16)
