"""What counts as a lost write."""

from __future__ import annotations

import struct

import pytest
from tests.support.faults.blocks import BLOCK, MASK, WORDS, checksum, holds, lost


def block(number: int) -> bytes:
    """As the guest's program fills it."""
    seed, words = (number * 0x9E3779B97F4A7C15 + 1) & MASK, []
    for _ in range(WORDS - 2):
        seed ^= (seed << 13) & MASK
        seed ^= seed >> 7
        seed ^= (seed << 17) & MASK
        words.append(seed)
    return struct.pack(f"<{WORDS}Q", number, checksum(tuple(words)) ^ number, *words)


def volume(*numbers: int) -> bytes:
    return b"".join(map(block, numbers))


def test_a_block_holds_its_number_or_is_torn() -> None:
    assert holds(block(7)) == 7
    assert holds(block(7)[:-1] + b"\0") is None
    assert holds(bytes(BLOCK)) is None


@pytest.mark.parametrize("numbers", [(4, 5, 2, 3), (4, 5, 6, 3), (8, 5, 6, 7), (8, 9, 10, 7)])
def test_what_was_acknowledged_or_is_newer_is_there(numbers: tuple[int, ...]) -> None:
    assert lost(volume(*numbers), 6, 9) == []


def test_nothing_was_acknowledged() -> None:
    assert lost(bytes(4 * BLOCK), 0, 9) == []


@pytest.mark.parametrize(
    ("numbers", "number"),
    [
        ((4, 1, 2, 3), 5),
        ((0, 5, 2, 3), 4),
        ((4, 6, 2, 3), 5),
        # Newer by far, so of another boot of the guest.
        ((4, 9, 2, 3), 5),
    ],
)
def test_an_older_or_a_foreign_block_is_a_loss(numbers: tuple[int, ...], number: int) -> None:
    assert [line.split(" of ")[0] for line in lost(volume(*numbers), 6, 9)] == [f"block {number}"]


def test_a_torn_block_is_a_loss_if_it_was_acknowledged() -> None:
    whole = volume(4, 5, 2, 3)
    torn = whole[: 2 * BLOCK - 1] + b"x" + whole[2 * BLOCK :]
    assert lost(torn, 6, 9) == ["block 5 of 6 is lost: a torn one is there"]
    # The guest was writing the seventh when it ended.
    assert lost(whole[: 2 * BLOCK] + block(6)[:-8] + bytes(8) + whole[3 * BLOCK :], 6, 9) == []


def test_what_an_earlier_boot_has_left_is_no_proof() -> None:
    assert lost(volume(20, 21, 18, 19), 3, 9) != []
    assert lost(volume(0, 1, 2, 19), 3, 9) == []
