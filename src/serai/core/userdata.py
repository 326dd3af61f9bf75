"""What cloud-init takes for user-data: it looks at the first line, and passes over in silence what it does not know."""

from __future__ import annotations

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import MappingStartEvent

from serai.schema.errors import InvalidError

CONFIG = "#cloud-config"
HEADERS = (
    "#!", "#include", "#include-once", "#cloud-boothook", "#part-handler", "#cloud-config-archive",
    "#cloud-config-jsonp", "## template: jinja", "Content-Type:", "MIME-Version:",
)  # fmt: skip
"""How user-data begins that is no `#cloud-config`: a script, a list of URLs, a template, MIME with several parts, …"""


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
