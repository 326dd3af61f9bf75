"""Writing YAML so that readers of YAML 1.1 and of 1.2 take it alike."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.resolver import VersionedResolver


class _Cautious(VersionedResolver):
    """Quotes the texts that YAML 1.1 takes for numbers or truth values, such as a MAC, `010` and `no`."""

    processing_version = (1, 1)


def dump(*documents: Any, allow_unicode: bool = True) -> str:
    """Plain values as block YAML with keys in their order, without the last line feed; several are separated by `---`.

    Control characters are written as escapes; without `allow_unicode`, so is all that is not ASCII.
    """
    writer = YAML(typ="safe", pure=True)
    writer.Resolver = _Cautious
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared by its default, None
    writer.allow_unicode = allow_unicode
    text = io.StringIO()
    writer.dump_all(documents, text)
    return text.getvalue().rstrip("\n")
