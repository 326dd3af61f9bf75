"""README and tutorial: each command does what is printed beneath it."""

from __future__ import annotations

import pytest

from .printed import TOP, differences, in_lab, shape


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
async def test_every_command_is_as_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERAI_CONTEXT", raising=False)
    outcomes = await in_lab(TOP / name)
    assert outcomes
    wrong = [
        f"{name}:{outcome.printed.line + 1}: {outcome.printed.command}: {line!r} is not in {outcome.output}"
        for outcome in outcomes
        for line in differences(outcome)
    ]
    assert not wrong, "\n".join(wrong)


def test_shapes() -> None:
    printed = "9de908021edd  vm.migrate    vm/web1       done   -   1.9s   11.0s"
    assert shape(printed) == shape("0123456789ab  vm.migrate  vm/web1  done   -   850ms   2m")
    assert shape(printed) != shape(printed.replace("done", "failed"))
