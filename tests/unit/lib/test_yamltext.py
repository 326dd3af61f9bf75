"""YAML that means the same to every reader."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML

from serai.lib.yamltext import dump

TEXTS = [
    "52:54:00:12:34:56",
    "010",
    "0x10",
    "1e3",
    "1_000",
    "no",
    "on",
    "y",
    "null",
    "~",
    "2026-01-01",
    "",
    " a: b ",
    "<<",
]


def read(text: str, version: tuple[int, int]) -> list[Any]:
    reader = YAML(typ="safe", pure=True)
    reader.version = version
    return list(reader.load_all(text))


@pytest.mark.parametrize("version", [(1, 1), (1, 2)])
def test_texts_stay_texts(version: tuple[int, int]) -> None:
    document = {"texts": TEXTS, **dict.fromkeys(TEXTS, 1), "long": "word " * 60}
    assert read(dump(document, {"second": True}), version) == [document, {"second": True}]


def test_order_and_alphabet() -> None:
    assert dump({"b": "ü", "a": [1]}) == "b: ü\na:\n- 1"
    assert dump({"b": "ü"}, allow_unicode=False) == 'b: "\\xFC"'
