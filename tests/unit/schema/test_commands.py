"""Commands as they are declared, and how they travel."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr, ValidationError

from serai.schema.commands import BY_NAME, COMMANDS
from serai.schema.commands.pool import POOL_CLOSE, POOL_OPEN
from serai.schema.commands.vm import VM_START, StartVm
from serai.schema.commands.volume import VOLUME_ADMIT, AdmitInitiator
from serai.schema.encoding import encode, to_dict
from serai.schema.ids import HostName, PoolId, VmId, VolumeId
from serai.schema.launch import Admission
from serai.schema.volume import PoolStatus

POOL, VOLUME, PASSWORD = PoolId("a" * 12), VolumeId("b" * 12), "a-secret-of-16-ch"


def admit() -> AdmitInitiator:
    right = Admission(
        vm=VmId("c" * 12), epoch=1, host=HostName("h1"), initiator="iqn.x", user="u", password=SecretStr(PASSWORD)
    )
    return AdmitInitiator(pool=POOL, volume=VOLUME, admission=right)


def test_every_command_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(COMMANDS)


def test_what_orders_a_command_is_in_its_body() -> None:
    assert VOLUME_ADMIT.key(admit()) == f"volume/{VOLUME}"
    launch = {"vm": "c" * 12, "name": "n", "generation": 1, "machine": "microvm", "accel": "tcg", "cpus": 1}
    launch |= {"max_cpus": 1, "memory": 1, "uuid": "u"}
    body = StartVm.model_validate({"launch": launch, "epoch": 1, "restart": "never"})
    assert VM_START.key(body) == f"vm/{'c' * 12}"


def test_a_reply_is_read_as_what_the_command_is_answered_with() -> None:
    assert POOL_OPEN.read_reply({"state": "ready"}) == PoolStatus(state="ready")
    assert POOL_CLOSE.read_reply(None) is None
    for command, result in ((POOL_OPEN, None), (POOL_OPEN, {"stat": "ready"}), (POOL_CLOSE, {})):
        with pytest.raises(ValidationError):
            command.read_reply(result)


def test_secrets_are_written_out_for_the_bus_alone() -> None:
    body = admit()
    assert AdmitInitiator.model_validate(to_dict(body)) == body
    assert AdmitInitiator.model_validate_json(encode(body)) == body
    assert json.loads(encode(body)) == to_dict(body)
    assert to_dict(body)["admission"]["password"] == PASSWORD
    for text in (repr(body), str(body.model_dump()), str(body.model_dump(mode="json")), body.model_dump_json()):
        assert PASSWORD not in text
