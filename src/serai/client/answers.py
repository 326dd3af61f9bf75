"""What an answer of the API means: a model, or the error that the server raised."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from serai.schema.errors import TREE, ErrorInfo, SeraiError, from_info


def parse(model: type[BaseModel], content: bytes) -> Any:
    """The model in a body. Raises SeraiError if the server is of another version and means something else."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise SeraiError(
            f"the controller's answer was not understood: {first['msg']}",
            field=".".join(str(part) for part in first["loc"]),
            remedy="Use the same version of Serai on both ends.",
        ) from error


def raise_for(status: int, content: bytes) -> None:
    """Raise the error that an answer holds; nothing for a good answer."""
    if status >= 400:
        raise from_info(_info(status, content))


def _info(status: int, content: bytes) -> ErrorInfo:
    try:
        body = json.loads(content)
        return ErrorInfo.model_validate(body.get("error", body) if isinstance(body, dict) else body)
    except (ValueError, ValidationError):
        # Not one of ours: a proxy, or a server of something else.
        text = content.decode(errors="replace").strip()[:200]
        code = next((kind.code for kind in TREE.values() if kind.status == status), SeraiError.code)
        return ErrorInfo(code=code, message=f"the server answered {status}" + (f": {text}" if text else ""))
