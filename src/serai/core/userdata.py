"""What cloud-init is given: SSH keys, and user-data.

Of user-data it looks at the first line, and passes over in silence what it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import MappingStartEvent

from serai.schema.errors import InvalidError
from serai.schema.image import Image
from serai.schema.vm import CloudInit

CONFIG = "#cloud-config"
HEADERS = (
    "#!", "#include", "#include-once", "#cloud-boothook", "#part-handler", "#cloud-config-archive",
    "#cloud-config-jsonp", "## template: jinja", "Content-Type:", "MIME-Version:",
)  # fmt: skip
"""How user-data begins that is no `#cloud-config`: a script, a list of URLs, a template, MIME with several parts, …"""
SSH_TYPE = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+")
SSH_BLOB = re.compile(r"[A-Za-z0-9+/]+=*")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_seed(seed: CloudInit | None, image: Image | None, field: str) -> None:
    """What cloud-init is to read can be read, and somebody there reads it. Raises InvalidError."""
    if seed is None or not (seed.user_data or seed.ssh_keys):
        return
    check_ssh_keys(seed.ssh_keys, f"{field}.ssh_keys")
    check(seed.user_data, f"{field}.user_data")
    manifest = image.status.manifest if image is not None else None
    if manifest is None or not manifest.cloud_init:
        what = "a VM without an image" if image is None else f"image {image.name}"
        raise InvalidError(
            f"{what} has no cloud-init that would read keys or user-data",
            field=field,
            value=None if image is None else image.name,
            remedy="Leave them out, or use an image with cloud-init: serai image build debian.",
        )


def check_ssh_keys(keys: Sequence[str], field: str) -> None:
    """Raises InvalidError for what is no line of an authorized_keys file: sshd would pass over it without a word."""
    for number, key in enumerate(keys):
        # Options, the key's type, the key, a comment. Word by word: one pattern for all of it takes quadratic time.
        words = [word for word in key.split(" ") if word]
        found = any(SSH_TYPE.fullmatch(one) and SSH_BLOB.fullmatch(two) for one, two in pairwise(words))
        if CONTROL.search(key) or not found:
            raise InvalidError(
                "this is no SSH public key",
                field=f"{field}[{number}]",
                value=repr(key[:40]),
                remedy="Send the line of a .pub file, like: ssh-ed25519 AAAA… me@laptop.",
            )


def check(text: str, field: str) -> None:
    """Refuse what cloud-init would pass over: another beginning than it knows, or a `#cloud-config` that is no YAML.

    Empty text is none. Raises InvalidError, without the text itself: it may hold passwords.
    """
    first = text.lstrip().partition("\n")[0].rstrip()
    if not first or (first.startswith(HEADERS) and first != CONFIG):
        return
    if first != CONFIG:
        raise InvalidError(
            "cloud-init does not know what begins so",
            field=field,
            value="line 1",
            remedy=f"Begin with {CONFIG} (and YAML below it), with #! (a script), or as MIME.",
        )
    try:
        found = [type(event) for event in YAML(typ="safe").parse(text)]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidError(
            f"this {CONFIG} is not YAML: {error.problem}",
            field=field,
            value="its end" if mark is None else f"line {mark.line + 1}",
            remedy="Look at the indentation, colons and quotes of this line and the one before it.",
        ) from None
    except YAMLError:
        raise InvalidError(
            f"this {CONFIG} is not YAML: it has a character that YAML forbids",
            field=field,
            remedy="Write it as plain text.",
        ) from None
    # The stream begins, the document begins, then comes what it holds; a comment alone begins no document.
    if len(found) > 2 and found[2] is not MappingStartEvent:
        raise InvalidError(
            f"a {CONFIG} holds keys and values", field=field, value="its first item", remedy="Write it as 'key: value'."
        )
