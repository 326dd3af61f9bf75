"""Where an image is downloaded from, and what its content must be: checked alike by CLI, API and host.

A URL may hold credentials: a user and password, or a token in its query. They are needed for the download and shown to
nobody. What is shown is `masked_url`: the value of each part of the query is masked, whatever its name, since
there is no list of all names that servers give their tokens.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from serai.lib.redact import MASK, SHORTEST, hide
from serai.schema.errors import InvalidError

LONGEST = 4096
"""Characters of a URL."""
SHOWN = 200
SCHEMES = ("http", "https")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LABEL = re.compile(r"\w(?:[\w-]{0,61}\w)?")
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
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"this is no URL: {str(error)[:80]}" if "@" not in url and "?" not in url else "this is no URL"
    if parts.scheme not in SCHEMES:
        return "an image's URL is http or https"
    if not host:
        return "the URL names no server"
    if port == 0:
        return "the URL's port cannot be 0"
    return None if _is_host(host) else "the URL's server is no name or address"


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return False
        return True
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


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
