"""What cloud-init would pass over is refused, with the line, and without the text."""

from __future__ import annotations

import pytest

from serai.core.userdata import check
from serai.schema.errors import InvalidError

GOOD = (
    "",
    "#cloud-config\n",
    "#cloud-config\npackages: [vim]\n",
    "\n#cloud-config  \na: 1\n",
    "#!/bin/sh\ntrue: [\n",
    "#include\nhttps://example.org/x\n",
    "## template: jinja\n#cloud-config\na: {{ v1.name }}\n",
    "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n",
    "#cloud-config-archive\n- type: text/x\n",
)


@pytest.mark.parametrize("text", GOOD)
def test_what_cloud_init_knows(text: str) -> None:
    check(text, "f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("foo: [unclosed", "line 1"),
        ("# cloud-config\na: 1\n", "line 1"),
        ("#cloud-config\na: 1\nb: [hunter2\n", "line 4"),
        ("#cloud-config\n- a\n", "its first item"),
        ("#cloud-config\njust words\n", "its first item"),
        ("#cloud-config\na: \x01\n", None),
    ],
)
def test_what_it_would_pass_over(text: str, value: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        check(text, "spec.cloud_init.user_data")
    info = caught.value.info
    assert (info.field, info.remedy is not None) == ("spec.cloud_init.user_data", True)
    assert info.value == value
    assert "hunter2" not in str(caught.value)
