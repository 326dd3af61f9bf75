"""The blocks that a tiny guest's disk writer leaves on its volume: numbered, checksummed, around and around.

The guest says how many it has written, which is said of a block once its write was acknowledged. So the volume must
hold each of these that was not written over since, and of what came after them an unbroken row; the one that the guest
was writing when it ended may be there, torn, or not. (The layout is that of `block_fill` in the tiny guest's program.)
"""

from __future__ import annotations

import struct

BLOCK = 4096
AROUND = 4096
"""Blocks after which the writer begins again from the first, on a volume that has so many."""
A_SECOND = 500
"""Blocks that the writer writes at most in one: it rests for 2 ms after each."""
WORDS = BLOCK // 8
MASK = (1 << 64) - 1


def checksum(words: tuple[int, ...]) -> int:
    """FNV-1a over words."""
    value = 1469598103934665603
    for word in words:
        value = ((value ^ word) * 1099511628211) & MASK
    return value


def holds(block: bytes) -> int | None:
    """The number of a block that is whole; none of one that is not."""
    words = struct.unpack(f"<{WORDS}Q", block)
    return words[0] if words[1] == checksum(words[2:]) ^ words[0] else None


def lost(content: bytes, written: int, more: int) -> list[str]:
    """What is missing on a volume whose writer had `written` blocks acknowledged, in words; the first few.

    `more`: how many it may have written after it was asked last. What an earlier boot of the guest has left is told
    from that by its numbers.
    """
    around = min(len(content) // BLOCK, AROUND)
    there = [holds(content[place * BLOCK : (place + 1) * BLOCK]) for place in range(around)]
    # Until the end of some unbroken row.
    ends = [number + 1 for number in there if number is not None and written <= number < written + more]
    ends = [end for end in ends if there[end % around] != end]
    wrong = min((_missing(there, end) for end in [written, *ends]), key=len)
    return [f"block {number} of {written} is lost: {_name(there[number % around])} is there" for number in wrong[:5]]


def _missing(there: list[int | None], end: int) -> list[int]:
    """Blocks below `end` that are not in their place. In that of the very oldest the writer may have begun another."""
    around = len(there)
    return [number for number in range(max(0, end - around + 1), end) if there[number % around] != number]


def _name(number: int | None) -> str:
    return "a torn one" if number is None else str(number)
