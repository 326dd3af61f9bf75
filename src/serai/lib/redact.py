"""Keeping secrets out of logs.

Two nets: values that were registered by `hide` are replaced wherever they appear, and so is what follows a telling
word (password, token, secret, key in PEM …). The nets catch mistakes; nobody should log a secret in the first place.
"""

import re
import threading
from collections import OrderedDict

MASK = "***"
REMEMBERED = 4096
"""How many registered secrets are kept; the oldest go first (they are tickets and passwords of the past)."""
SHORTEST = 6
"""Shorter values are not registered: they would blot out ordinary words."""

_WORDS = re.compile(
    r"""(?ix)
    (?P<word> ["']? [\w.-]* (?:password|passwd|passphrase|secret|token|ticket_id|chap|private_key) [\w.-]* ["']?
      \s* [=:] \s* )
    (?P<value> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | [^\s,;&)\]}]+ )
    """
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)

_hidden: OrderedDict[str, None] = OrderedDict()
_lock = threading.Lock()


def hide(secret: str) -> None:
    """Replace this value in everything that is logged from now on."""
    if len(secret) < SHORTEST:
        return
    with _lock:
        _hidden[secret] = None
        _hidden.move_to_end(secret)
        if len(_hidden) > REMEMBERED:
            _hidden.popitem(last=False)


def redact(text: str) -> str:
    """Return the text with all secrets found in it replaced."""
    with _lock:
        known = [secret for secret in _hidden if secret in text]
    for secret in known:
        text = text.replace(secret, MASK)
    text = _PEM.sub(MASK, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _WORDS.sub(rf"\g<word>{MASK}", text)
