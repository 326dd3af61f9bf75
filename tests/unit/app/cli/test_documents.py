"""YAML documents: what they mean, and where they are wrong."""

import pytest

from serai.app.cli.documents import in_order, parse
from serai.schema.errors import InvalidError

SITE = """\
# a site
kind: vm
name: web1
labels: {tier: web}
spec:
  memory: 128M
  vnics:
    - network: lan
      mac: 52:54:00:12:34:56
---
kind: network
name: lan
spec: {bridge: br-lan, subnet: 10.77.0.0/24}
---
"""


def complaint(text: str) -> str:
    with pytest.raises(InvalidError) as caught:
        in_order(parse(text, "site.yaml"))
    return str(caught.value)


def test_several_documents_come_in_the_order_of_need() -> None:
    documents = in_order(parse(SITE, "site.yaml"))
    assert [(document.kind, document.name) for document in documents] == [("network", "lan"), ("vm", "web1")]
    vm = documents[1]
    assert vm.where() == "site.yaml:2"
    assert vm.where(("spec", "vnics", 0, "mac")) == "site.yaml:9"
    assert vm.wanted() == {
        "name": "web1",
        "labels": {"tier": "web"},
        "spec": {"memory": 128 << 20, "vnics": [{"network": "lan", "mac": "52:54:00:12:34:56"}]},
    }


def test_what_show_prints_is_a_document() -> None:
    text = (
        "kind: vm\nname: a\nid: '000000000001'\ngeneration: 4\ncreated: 2026-01-01\nspec: {cpus: 2}\nstatus: {x: y}\n"
    )
    assert parse(text, "-")[0].wanted() == {"name": "a", "spec": {"cpus": 2}}


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("memory: 128M", "memory: [128M"), 7, "not YAML"),
        (("memory: 128M", "memry: 128M"), 6, "Did you mean 'memory'?"),
        (("memory: 128M", "memory: 12Q"), 6, "12Q"),
        (("mac: 52", "mac: zz"), 9, "mac"),
        (("name: web1", "name: Web1"), 3, "lower-case"),
        (("kind: vm", "kind: cluster"), 2, "no such kind"),
        (("kind: vm", "kin: vm"), 2, "'kind' is missing"),
        (("name: lan\nspec", "name: lan\nlabels: {a: true}\nspec"), 13, "labels.a"),
        (("  memory: 128M", "  memory: 128M\n  memory: 256M"), 7, "'memory' is given twice"),
    ],
)
def test_mistakes_are_named_with_their_line(change: tuple[str, str], line: int, words: str) -> None:
    text = complaint(SITE.replace(*change))
    assert text.startswith(f"site.yaml:{line}: "), text
    assert words in text


def test_a_document_that_is_no_mapping() -> None:
    assert complaint("- a\n").startswith("site.yaml:1: ")


def test_one_thing_is_described_once() -> None:
    text = complaint(SITE + SITE)
    assert "described twice" in text
    assert "site.yaml:2" in text


def test_what_is_hardly_yaml_is_refused_in_words() -> None:
    """Not by a traceback, and not by filling the memory."""
    assert "not YAML" in complaint("\0")
    assert "site.yaml:3: Keys should be strings" in complaint("kind: vm\nname: a\nspec: {1: x}\n")
    assert "site.yaml:1: 'kind' is missing" in complaint("? [a]\n: b\n")
    assert "no such kind" in complaint("kind: [vm]\nname: x\n")
    assert "aliases stand for too much" in complaint("&a [*a]")
    assert "maximum depth of data structure exceeded (51) (" in complaint("[" * 5000)
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "aliases stand for too much" in complaint("\n".join([*lines, "kind: *l8", "name: x"]))


def test_numbers_are_those_of_yaml_1_2() -> None:
    """No octal ones, no numbers of base 60, and `no` is a word; what is text must be written as text."""
    (document,) = parse("kind: vm\nname: a\nlabels: {a: no, b: 1:30}\nspec: {cpus: 010, autostart: no}\n", "site.yaml")
    assert document.wanted()["labels"] == {"a": "no", "b": "1:30"}
    assert document.wanted()["spec"] == {"cpus": 10, "autostart": False}
    assert "labels.a" in complaint("kind: vm\nname: a\nlabels: {a: 010}\nspec: {image: tiny}\n")


def test_aliases_are_fine_as_such() -> None:
    (document,) = parse("kind: vm\nname: a\nlabels: {a: &x web, b: *x}\nspec: {image: tiny}\n", "site.yaml")
    assert document.wanted()["labels"] == {"a": "web", "b": "web"}
