"""Keeping secrets out of logs."""

import pytest

from serai.lib.redact import REMEMBERED, hide, redact


@pytest.mark.parametrize(
    "text",
    [
        "password=S3cret!",
        "chap_password: S3cret!",
        '{"token": "S3cret!", "name": "web1"}',
        "{'secret': 'S3cret!'}",
        "Authorization: Bearer S3cret1234567",
        "--iscsi-password=S3cret!",
        "-----BEGIN PRIVATE KEY-----\nS3cret\n-----END PRIVATE KEY-----",
    ],
)
def test_telling_words(text: str) -> None:
    assert "S3cret" not in redact(text)
    assert "***" in redact(text)


def test_ordinary_text_stays() -> None:
    text = "vm web1 moved from h1 to h2 in 0.8 s (keys=3, tokenizer off)"
    assert redact(text) == text


def test_hidden_values_go_wherever_they_are() -> None:
    hide("a1b2c3d4e5")
    assert redact("ticket a1b2c3d4e5 used") == "ticket *** used"
    hide("abc")
    assert redact("abc") == "abc"
    for number in range(REMEMBERED):
        hide(f"filler-{number}")
    assert redact("a1b2c3d4e5") == "a1b2c3d4e5"
