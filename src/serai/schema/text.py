"""Text that a terminal would act on instead of showing it: what is refused in names and labels, and escaped in output.

Escape sequences move the cursor and hide lines, line separators make one line look like two, and turns of direction
show other text than there is. Whoever may name a thing, a guest too, could else write on an operator's screen.
"""

from __future__ import annotations

import unicodedata

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def unsafe(character: str) -> bool:
    """Whether a terminal acts on it: controls, line and paragraph separators, turns of direction."""
    return unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in BIDI


def one_line(text: str) -> str:
    """The text, if it is one line of characters that show as what they are. Raises ValueError."""
    strange = next((one for one in text if unsafe(one)), None)
    if strange is not None:
        raise ValueError(
            f"the text has a control character, U+{ord(strange):04X} at {text.index(strange)}; "
            "leave it out and write one line"
        )
    return text


def visible(text: str, keep: str = "") -> str:
    r"""The text with each unsafe character as its escape (`\x1b`, `\n`, `\u202e`), but for those in `keep`."""
    if text.isprintable():
        return text
    return "".join(one if one in keep or not _hidden(one) else _escape(one) for one in text)


def json_safe(dumped: str) -> str:
    r"""JSON with all unsafe characters as `\u….`; a new line in JSON is never within a text."""
    if dumped.isprintable():
        return dumped
    return "".join(f"\\u{ord(one):04x}" if one != "\n" and _hidden(one) else one for one in dumped)


def _hidden(character: str) -> bool:
    # Half a surrogate pair cannot even be written.
    return unsafe(character) or "\ud800" <= character <= "\udfff"


def _escape(character: str) -> str:
    return character.encode("unicode-escape").decode()
