"""Whatever JSON comes to a route that takes a body, the answer is never a fault of ours.

Bodies are made from the API's own description: each field is left out, or has something that fits its type, a name or
address that is there, or anything at all.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.controller.conftest import World

Json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**40, 1e308, float("inf"), float("nan")])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
Known = st.sampled_from(
    [
        "web1", "new", "h1", "h3", "shared0", "local2", "lost", "tiny", "debian", "lan", "disk", "br-lan", "eth0",
        "10.77.0.0/24", "10.77.0.255", "0.0.0.0/0", "52:54:00:00:00:01", "00:00:00:00:00:00",
        "1G", "512M", "1e9", "1T", "٣G", "url", "http://x/y", "a" * 64, "/srv/p", "iscsi", "none", "q35", "\0",
        "\ud800", "\x1b[2J", "\u202e", "", "10.77.0.100",
    ]
)  # fmt: skip


def fitting(schema: dict[str, Any], parts: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values for a piece of the description, right and wrong ones."""
    if "$ref" in schema:
        return fitting(parts[schema["$ref"].rpartition("/")[2]], parts)
    if "anyOf" in schema:
        return st.one_of([fitting(one, parts) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"]) | Known
    if "properties" in schema:
        fields = {name: fitting(of, parts) | Known | Json for name, of in schema["properties"].items()}
        must = {name: fields.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(must, optional=fields)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "array": st.deferred(lambda: st.lists(fitting(schema.get("items", {}), parts), max_size=3)),
        "object": st.dictionaries(st.text(max_size=4), st.text(max_size=4) | Known, max_size=3),
        "boolean": st.booleans(),
        "null": st.none(),
        "integer": st.integers() | st.integers(0, 1 << 32) | Known,
        "number": st.floats() | st.integers() | st.floats(1, 60),
        "string": Known | st.text(max_size=8),
    }
    return kinds.get(schema.get("type", ""), Known | Json)


MADE: dict[str, st.SearchStrategy[Any]] = {}
"""Bodies of each route: making the strategies takes longer than drawing from them."""


async def bodies(world: World) -> dict[str, st.SearchStrategy[Any]]:
    """`METHOD PATH` to what is sent there."""
    if not MADE:
        description = (await world.http.get("/v1/openapi.json")).json()
        for path, methods in description["paths"].items():
            for method, route in methods.items():
                content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
                schema = content.get("schema")
                if method in ("post", "patch"):
                    MADE[f"{method} {path}"] = fitting(schema, description["components"]["schemas"]) if schema else Json
    return MADE


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
async def test_no_body_makes_a_fault(world: World, data: st.DataObject) -> None:
    for route, body in (await bodies(world)).items():
        method, path = route.split()
        name = data.draw(st.sampled_from(["web1", "h1", "new", "web1-disk0", "%00", "x"]))
        content = json.dumps(data.draw(body, route))
        answer = await world.http.request(
            method, path.replace("{name}", name), content=content, headers={"Content-Type": "application/json"}
        )
        offline = answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
        assert answer.status_code < 500 or offline, f"{route}: {content}: {answer.text}"
        if answer.is_error:
            assert answer.json()["error"]["remedy"], f"{route}: {content}: {answer.text}"
