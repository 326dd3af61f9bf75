"""Subjects and errors on the bus."""

import pytest

from serai.lib.bus import check_message, check_pattern, decode_error, encode_error, matches
from serai.schema.errors import ConflictError, InvalidError, SeraiError


@pytest.mark.parametrize(
    ("pattern", "subject", "reaches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.*.c", "a.b.c", True),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
    ],
)
def test_matches(pattern: str, subject: str, reaches: bool) -> None:
    assert matches(pattern, subject) is reaches


def test_what_is_no_subject() -> None:
    check_message("a.b-c.d_1", b"")
    check_pattern("a.*.>")
    for subject in ("", ".a", "a.", "a..b", "a b", "a.*", "a.>", "a\n"):
        with pytest.raises(InvalidError):
            check_message(subject, b"")
    for pattern in ("a.>.b", "a.*b", "a>"):
        with pytest.raises(InvalidError):
            check_pattern(pattern)


def test_errors_survive_the_journey() -> None:
    error = decode_error(encode_error(ConflictError("taken", field="name", value="web1", remedy="Choose another.")))
    assert isinstance(error, ConflictError)
    assert error.info.remedy == "Choose another."
    plain = decode_error(encode_error(KeyError("x")))
    assert type(plain) is SeraiError
    assert "KeyError" in str(plain)
    assert "cannot be read" in str(decode_error(b"garbage"))
