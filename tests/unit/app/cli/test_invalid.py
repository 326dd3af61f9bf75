"""Wrong input in words."""

from typing import Any

import pytest

from serai.app.cli.invalid import build
from serai.schema.errors import ErrorInfo, InvalidError
from serai.schema.network import NetworkCreate
from serai.schema.vm import VmCreate
from serai.schema.volume import PoolCreate


def refusal(spec: dict[str, Any], name: str = "web1") -> ErrorInfo:
    with pytest.raises(InvalidError) as caught:
        build(VmCreate, {"name": name, "spec": spec})
    return caught.value.info


def test_what_is_none_counts_as_not_given() -> None:
    made = build(VmCreate, {"name": "web1", "spec": {"image": None, "memory": "128M"}, "labels": None})
    assert made.spec.model_fields_set == {"memory"}
    assert made.spec.memory == 128 << 20


def test_the_value_is_what_the_user_wrote() -> None:
    info = refusal({"memory": "1M"})
    assert (info.field, info.value, info.remedy) == ("spec.memory", "1M", "Use at least 32M.")


def test_a_name_that_cannot_be() -> None:
    info = refusal({}, name="Web_1")
    assert (info.field, info.value) == ("name", "Web_1")
    assert "lower-case" in str(info.remedy)
    info = refusal({}, name="0123456789ab")
    assert (info.field, info.value, info.remedy) == ("name", "0123456789ab", "Choose another one.")
    assert info.message == "a name of twelve hexadecimal digits would be taken for an id"


def test_an_unknown_field_gets_a_suggestion() -> None:
    info = refusal({"memry": "1G"})
    assert info.field == "spec.memry"
    assert info.remedy == "Did you mean 'memory'?"
    assert refusal({"zzz": 1}).remedy == "Remove it."


def test_places_in_lists_are_named() -> None:
    info = refusal({"disks": [{"pool": "p", "size": "1G"}, {"pool": "p", "sise": "1G"}]})
    assert info.field == "spec.disks[1].sise"
    assert info.remedy == "Did you mean 'size'?"


def test_choices_are_listed() -> None:
    info = refusal({"machine": "pc"})
    assert info.remedy == "Use 'q35' or 'microvm'."


def test_too_much_and_missing() -> None:
    assert refusal({"cpus": 1000}).remedy == "Use at most 256."
    with pytest.raises(InvalidError, match="'subnet' is missing"):
        build(NetworkCreate, {"name": "lan", "spec": {"bridge": "br-lan"}})


def test_rules_between_fields_keep_their_words() -> None:
    with pytest.raises(InvalidError, match="is not inside subnet"):
        build(
            NetworkCreate,
            {"name": "lan", "spec": {"bridge": "b", "subnet": "10.0.0.0/24", "gateway": "10.1.0.1"}},
        )


def test_an_unknown_field_is_told_before_a_missing_one() -> None:
    with pytest.raises(InvalidError) as caught:
        build(PoolCreate, {"name": "p", "spec": {"hots": "h1"}})
    assert (caught.value.info.field, caught.value.info.remedy) == ("spec.hots", "Did you mean 'host'?")


@pytest.mark.parametrize(
    ("changes", "field", "value", "remedy"),
    [
        ({"subnet": "10.77.0.0/99"}, "spec.subnet", "10.77.0.0/99", "Write it like 10.77.0.0/24"),
        ({"subnet": "10.77.0.5/24"}, "spec.subnet", "10.77.0.5/24", "with zeros behind the prefix."),
        ({"gateway": "here"}, "spec.gateway", "here", "Write it like 10.77.0.1."),
        ({"gateway": "10.9.0.1"}, "spec.gateway", "10.9.0.1", "Give an address in 10.77.0.0/24."),
        ({"range_start": "10.77.0.9", "range_end": "10.77.0.8"}, "spec.range_end", "10.77.0.8", "Give the smaller one"),
        (
            {"bridge": "a bridge"},
            "spec.bridge",
            "a bridge",
            "Use letters, digits, '.', '_' and '-', at most 15 in all.",
        ),
    ],
)
def test_every_refusal_of_a_network_has_a_remedy(changes: dict[str, str], field: str, value: str, remedy: str) -> None:
    spec = {"bridge": "br-lan", "subnet": "10.77.0.0/24", **changes}
    with pytest.raises(InvalidError) as caught:
        build(NetworkCreate, {"name": "n", "spec": spec})
    info = caught.value.info
    assert (info.field, info.value) == (field, value)
    assert remedy in str(info.remedy)


def test_a_number_without_its_unit_is_told_so() -> None:
    info = refusal({"memory": "128"})
    assert (info.message, info.remedy) == (
        "'memory' has no unit, and 128 bytes are too few",
        "Write the unit, such as 128M.",
    )


def test_nothing_is_not_a_number_without_a_unit() -> None:
    assert refusal({"memory": "0"}).message == "'memory' is too small"


def test_findings_are_told_in_our_words() -> None:
    assert refusal({"cpus": "two"}).message == "this is no whole number"
    assert (
        refusal({"vnics": [{"network": "lan", "mac": "zz"}]}).remedy
        == "Write it like 52:54:00:12:34:56, in lower case."
    )


def test_a_size_in_words_has_a_remedy() -> None:
    info = refusal({"memory": "much"})
    assert (info.message, info.remedy) == ("'much' is not a size", "Write it like 512M, 4G or 1.5T.")


def test_a_field_in_another_ones_place_is_sent_there() -> None:
    assert refusal({"description": "d"}).remedy == "It stands beside 'spec', not in it: move it there."
    assert refusal({"labels": {}}).remedy == "It stands beside 'spec', not in it: move it there."
    with pytest.raises(InvalidError) as caught:
        build(VmCreate, {"name": "v", "spec": {}, "memory": "1G"})
    assert caught.value.info.remedy == "It belongs into 'spec': move it there."


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ({"cpus": "two"}, "Give a whole number, such as 2."),
        ({"cpus": 1.5}, "Give a whole number, such as 2."),
        ({"autostart": "perhaps"}, "Give true or false."),
        ({"disks": "d"}, "Give a list."),
        ({"cloud_init": "x"}, "Give fields and their values."),
        ({"cmdline": 5}, "Give text, in quotes."),
        ({"cmdline": "x" * 3000}, "Give at most 2048 characters."),
        ({"disks": [{}] * 16}, "Give at most 15."),
        ({"memory": "90000T"}, "Use at most 16T."),
    ],
)
def test_every_refusal_of_a_vm_has_a_remedy(spec: dict[str, Any], remedy: str) -> None:
    assert refusal(spec).remedy == remedy


def test_a_bad_label_is_named() -> None:
    for labels, field in (({"a": "\x1b"}, "labels.a"), ({"\x1b": "a"}, "labels")):
        with pytest.raises(InvalidError) as caught:
            build(VmCreate, {"name": "v", "spec": {}, "labels": labels})
        assert (caught.value.info.field, caught.value.info.remedy) == (field, "Leave it out and write one line.")
