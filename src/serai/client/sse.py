"""Server-sent events: bytes in, messages out; no network here.

A message is `id:`, `event:` and `data:` lines up to an empty line. Lines that begin with a colon are comments; servers
send them to keep a silent connection alive, so they are reported too, as messages without data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """`data` none: a comment, which says only that the other end lives."""

    data: str | None
    id: str | None = None
    event: str = "message"


class Parser:
    """Feed it lines without their ends; it answers a message whenever one is complete."""

    def __init__(self) -> None:
        self._data: list[str] = []
        self._id: str | None = None
        self._event = "message"

    def feed(self, line: str) -> Message | None:
        """Take one line."""
        if not line:
            return self._finish()
        if line.startswith(":"):
            return Message(None)
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "event":
            self._event = value
        return None

    def _finish(self) -> Message | None:
        data, event = self._data, self._event
        self._data, self._event = [], "message"
        return Message("\n".join(data), self._id, event) if data else None


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The lines of a stream, without their ends; what follows the last end is dropped.

    Only a line feed (and a carriage return before it) ends a line here, while Python, and httpx with it, splits at
    U+2028 and at U+0085 too: those may be within a text, and a message would come out torn.
    """
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")


async def messages(lines: AsyncIterator[str]) -> AsyncIterator[Message]:
    """All messages of a stream of lines; an unfinished one at the end is dropped, as the standard demands."""
    parser = Parser()
    async for line in lines:
        message = parser.feed(line)
        if message is not None:
            yield message
