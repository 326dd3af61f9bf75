"""What CONTRIBUTING.md promises of the code's shape: nothing in it is too long, and no modules import in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

TOP = Path(__file__).parents[2]
MODULE, CLASS, FUNCTION = 500, 300, 60
"""Lines at most. A function or class counts from its first line to its last, without decorators."""


def too_long(name: str, source: str) -> Iterator[str]:
    """What in a module's source is longer than it may be."""
    lines = len(source.splitlines())
    if lines > MODULE:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > (CLASS if isinstance(node, ast.ClassDef) else FUNCTION):
                yield f"{name}:{node.lineno}: {node.name}: {length} lines"


@pytest.mark.parametrize("folder", ["src", "tests", "bench"])
def test_nothing_is_too_long(folder: str) -> None:
    files = sorted((TOP / folder).rglob("*.py"))
    assert files
    found = [line for file in files for line in too_long(str(file.relative_to(TOP)), file.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_what_is_too_long_is_found() -> None:
    body = "    pass\n" * FUNCTION
    assert list(too_long("m", f"def f():\n{body}")) == ["m:1: f: 61 lines"]
    assert list(too_long("m", f"class C:\n  async def f():\n{body}")) == ["m:2: f: 61 lines"]
    assert list(too_long("m", "class C:\n" + "    x = 1\n" * CLASS)) == ["m:1: C: 301 lines"]
    assert list(too_long("m", "x = 1\n" * (MODULE + 1))) == ["m: 501 lines"]


def test_no_modules_import_in_a_circle() -> None:
    graph = grimp.build_graph("serai", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > len(imports)
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
