"""What CONTRIBUTING.md promises of the code: nothing in it is too long, no modules import in a circle, one function
writes a VM's state, and tests import nothing of another folder's tests."""

from __future__ import annotations

import ast
import itertools
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


SETTER = "services/vms.py"


def state_writes(name: str, source: str) -> Iterator[str]:
    """Where a module of the controller writes, or may write, the state in a VM's status."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg for keyword in node.keywords}
        sets = called.endswith("vms.set_status") or (called.endswith("vms.update_status") and given & {"state", None})
        values = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "state"]
        made = called == "VmStatus" and given & {"state", None}
        if sets or made or any(value.startswith("VmState.") for value in values):
            yield f"{name}:{node.lineno}: {ast.unparse(node)}"


def test_one_function_writes_a_vms_state() -> None:
    controller = TOP / "src/serai/controller"
    files = {str(file.relative_to(controller)): file for file in sorted(controller.rglob("*.py"))}
    found = {name: list(state_writes(name, file.read_text(encoding="utf-8"))) for name, file in files.items()}
    assert len(found.pop(SETTER)) == 1
    assert not any(found.values()), "\n".join(itertools.chain(*found.values()))


@pytest.mark.parametrize(
    ("line", "writes"),
    [
        ("tx.vms.set_status(vm.id, status)", True),
        ("tx.vms.update_status(vm.id, state=state)", True),
        ("tx.vms.update_status(vm.id, **fields)", True),
        ("tx.vms.update_status(vm.id, addresses=own)", False),
        ("VmStatus(state=state)", True),
        ("VmStatus()", False),
        ("status.model_copy(update=dict(state=VmState.STOPPED))", True),
        ("tx.volumes.update_status(volume.id, state=VolumeState.READY)", False),
    ],
)
def test_a_write_of_a_vms_state_is_found(line: str, writes: bool) -> None:
    assert bool(list(state_writes("m.py", line))) is writes


SHARED = ("tests.plugins", "tests.support")
"""What every test may import; all else belongs to the tests of its folder, and of those inside it."""


def foreign_imports(name: str, source: str) -> Iterator[str]:
    """What a module of the tests imports of another folder's, or of a test; `name` is its path from the top."""
    folder = Path(name).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = list(folder[: len(folder) - node.level + 1]) if node.level else []
            # A name may be a module itself: both are looked at.
            module = base + (node.module.split(".") if node.module else [])
            found = [module] if node.module else [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for words in found:
            dotted = ".".join(words)
            shared = any(dotted == one or dotted.startswith(f"{one}.") for one in SHARED)
            mine = tuple(words[:-1]) == folder[: len(words) - 1] and not words[-1].startswith("test_")
            if words[0] == "tests" and not shared and not mine:
                yield f"{name}:{node.lineno}: {dotted}"


def test_no_test_imports_from_another_folders_tests() -> None:
    files = sorted((TOP / "tests").rglob("*.py"))
    found = [
        line for file in files for line in foreign_imports(str(file.relative_to(TOP)), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "foreign"),
    [
        ("from tests.support.lab import Lab", None),
        ("from tests.support import observed", None),
        ("from tests.unit.host.conftest import VM", None),
        ("from .conftest import VM", None),
        ("from . import conftest", None),
        ("from tests.unit.ground import Ground", None),
        ("from .test_vm import VM", "tests.unit.host.test_vm"),
        ("import tests.plugins.order", None),
        ("from tests.unit.core.hosts import Host", "tests.unit.core.hosts"),
        ("from ..core.hosts import Host", "tests.unit.core.hosts"),
        ("import tests.contract.benches", "tests.contract.benches"),
        ("from tests.supportive.it import that", "tests.supportive.it"),
    ],
)
def test_what_is_anothers_is_found(line: str, foreign: str | None) -> None:
    found = list(foreign_imports("tests/unit/host/test_agent.py", line))
    assert found == ([] if foreign is None else [f"tests/unit/host/test_agent.py:1: {foreign}"])
