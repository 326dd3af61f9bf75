"""Where an image is downloaded from, and what its content must be: checked alike by CLI, API and host.

A URL may hold credentials: a user and password, or a token in its query. They are needed for the download and shown to
nobody. What is shown is `masked_url`: the value of each part of the query is masked, whatever its name, since
there is no list of all names that servers give their tokens.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from pydantic import AnyUrl, TypeAdapter, UrlConstraints, ValidationError

from serai.lib.redact import MASK, SHORTEST, hide
from serai.schema.errors import InvalidError

LONGEST = 4096
"""Characters of a URL."""
SHOWN = 200
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_URL = TypeAdapter(Annotated[AnyUrl, UrlConstraints(allowed_schemes=["http", "https"], host_required=True)])
_WHOLE = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_STRANGE = re.compile(r"[\s\x00-\x1f\x7f\\<>\"{}|^`]")
REMEDY = "Write it like https://images.example/disk.qcow2, or import a file by its path."


def check_url(url: str, field: str = "spec.url") -> None:
    """Raises InvalidError, without credentials in it, unless this is a whole http or https URL."""
    wrong = _wrong(url)
    if wrong is not None:
        raise InvalidError(wrong, field=field, value=masked_url(url)[:SHOWN], remedy=REMEDY)


def _wrong(url: str) -> str | None:
    if len(url) > LONGEST:
        return f"the URL is longer than {LONGEST} characters"
    if _STRANGE.search(url):
        return "the URL has a character that URLs do not have, such as a space"
    try:
        _URL.validate_python(url)
    except ValidationError as error:
        return f"this is no http or https URL: {error.errors()[0]['msg']}"
    # As in browsers, `http:host` and `http:///host` are URLs to Pydantic.
    return None if _WHOLE.match(url) else "the URL names no server"


def check_sha256(text: str, field: str = "spec.sha256") -> str:
    """The checksum in lower case. Raises InvalidError."""
    if SHA256.fullmatch(text) is None:
        raise InvalidError(
            "not a SHA-256", field=field, value=text[:SHOWN], remedy="Give 64 hexadecimal digits (sha256sum)."
        )
    return text.lower()


def masked_url(url: str) -> str:
    """The URL without what may be a secret in it; equal to `url` if there is nothing of the kind."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK if any(mark in url for mark in "@?#") else url
    netloc = parts.netloc
    if "@" in netloc:
        netloc = f"{MASK}@{netloc.rpartition('@')[2]}"
    elif "@" in url.partition("?")[0]:
        # Not where credentials belong, so nobody knows what it is: `http:user:password@host`.
        return MASK
    query = "&".join(_masked_part(part) for part in parts.query.split("&"))
    fragment = MASK if len(parts.fragment) >= SHORTEST else parts.fragment
    if (netloc, query, fragment) == (parts.netloc, parts.query, parts.fragment):
        return url
    return urlunsplit(SplitResult(parts.scheme, netloc, parts.path, query, fragment))


def _masked_part(part: str) -> str:
    """A word alone may be a token too, unless it is short."""
    name, equals, value = part.partition("=")
    if value:
        return f"{name}={MASK}"
    return part if equals or len(part) < SHORTEST else MASK


def hide_url(url: str) -> None:
    """Keep a URL's secrets out of this process's logs from now on. The URL is one that `check_url` lets pass."""
    if masked_url(url) == url:
        return
    parts = urlsplit(url)
    values = [part.partition("=")[2] or part for part in parts.query.split("&")]
    user = parts.netloc.rpartition("@")[0]
    for secret in (url, user, parts.password or "", *values, parts.fragment):
        hide(secret)
        hide(unquote(secret))
