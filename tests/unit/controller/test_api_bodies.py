"""What the API makes of bodies that are too long, too deep, of another type, or no JSON; and of wrong paths."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.unit.controller.conftest import World

JSON = {"Content-Type": "application/json"}
MIB = 1 << 20


async def refusal(world: World, status: int, content: Any, headers: dict[str, str] | None = None) -> dict[str, str]:
    """The error of creating a VM with this body; it names all that an error should."""
    answer = await world.http.post("/v1/vms", content=content, headers=JSON if headers is None else headers)
    assert answer.status_code == status, answer.text
    error: dict[str, str] = answer.json()["error"]
    assert error["field"] and error["value"] and error["remedy"], error
    return error


async def test_a_long_body_is_not_read_to_its_end(bare: World) -> None:
    error = await refusal(bare, 413, b'"' + b"x" * MIB + b'"')
    assert (error["code"], error["field"]) == ("too_large", "body")
    assert "1M" in error["message"]
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield b" " * (MIB // 4)

    await refusal(bare, 413, chunks())
    assert sent < 64
    assert (await bare.http.post("/v1/vms", content=b" " * MIB, headers=JSON)).status_code == 422


async def test_an_upload_is_as_long_as_it_likes(bare: World) -> None:
    answer = await bare.http.put("/v1/images/none/content", content=b"x" * (2 * MIB))
    assert answer.json()["error"]["code"] == "unsupported"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1"]
)
async def test_the_wrong_type_is_named(bare: World, kind: str) -> None:
    error = await refusal(bare, 415, b"{}", {"Content-Type": kind})
    assert (error["code"], error["field"], error["value"]) == ("media_type", "Content-Type", kind)
    assert "application/json" in error["remedy"]


async def test_a_body_without_a_type(bare: World) -> None:
    assert (await refusal(bare, 415, b"{}", {}))["value"] == "none"
    for kind in ("application/json; charset=UTF-8", "Application/JSON", "application/merge-patch+json"):
        answer = await bare.http.post("/v1/vms", content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 422


@pytest.mark.parametrize("levels", [250, 1000, 80_000])
async def test_a_deep_body(bare: World, levels: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        error = await refusal(bare, 422, opening * levels + b"1" + closing * levels)
        assert "recursion limit exceeded" in error["message"]
    error = await refusal(bare, 422, b"[" * levels)
    assert "recursion limit exceeded" in error["message"]


async def test_brackets_in_text_are_no_levels(bare: World) -> None:
    answer = await bare.http.post("/v1/vms", content=b'{"name": "' + b'[{\\"' * 100 + b'"}', headers=JSON)
    assert "recursion" not in answer.text


async def test_what_is_no_json_is_told_with_its_place(bare: World) -> None:
    error = await refusal(bare, 422, b'{"name": nix}')
    assert (error["message"], error["value"]) == ("the body is not JSON: expected ident", "line 1 column 11")
    error = await refusal(bare, 422, b'{"name": "\xff"}')
    assert (error["message"], error["value"]) == (
        "the body is not JSON: invalid unicode code point",
        "line 1 column 11",
    )
    error = await refusal(bare, 422, b'{"name": ' + b"1" * 5000 + b"}")
    assert error["message"] == "the body is not JSON: number out of range"


async def test_wrong_paths_and_methods_have_a_remedy(bare: World) -> None:
    for path in ("/", "/v2/vms", "/v1/nothing", "/v1/vms/a/b/c"):
        error = await bare.refused("GET", path)
        assert (error["status"], error["field"], error["value"]) == (404, "path", path)
    error = await bare.refused("DELETE", "/v1/vms")
    assert (error["status"], error["field"], error["value"]) == (405, "method", "DELETE /v1/vms")
    assert error["remedy"].startswith("Use GET, POST:")
    answer = await bare.http.put("/v1/vms/web1")
    assert set(answer.headers["Allow"].split(", ")) >= {"GET", "PATCH", "DELETE"}
