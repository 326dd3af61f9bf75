"""Wrong input in words."""

from typing import Any

import pytest

from serai.app.cli.invalid import build
from serai.schema.errors import ErrorInfo, InvalidError
from serai.schema.network import NetworkCreate
from serai.schema.vm import VmCreate


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
