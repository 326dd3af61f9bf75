"""Where the API is: named contexts in one file of the user's own.

`~/.config/serai/contexts.yaml` (`$XDG_CONFIG_HOME` is honoured; `$SERAI_CONFIG` names another file) holds any number of
contexts and which of them is current. A context names a Unix socket or a URL, the file that holds the bearer token and,
for https, the CA to trust. Tokens stand in files of their own, never here and never in a command line. Without a
current context the API is that of this machine, by its socket.

`via` says how a VM's addresses are reached for `vm ssh`: `{netns: NAME}` goes through that network namespace.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from serai.lib import atomicfile, yamltext
from serai.schema.errors import InvalidError, NotFoundError, UnavailableError
from serai.schema.resource import Frozen

LOCAL_SOCKET = Path("/run/serai/api.sock")
LOCAL_TOKEN = Path("/run/serai/api.token")
LOCAL_NAME = "local"
ENV_FILE = "SERAI_CONFIG"
ENV_CONTEXT = "SERAI_CONTEXT"


class Context(Frozen):
    """One way to one API: `socket` or `url`, exactly one of them."""

    url: str | None = Field(default=None, pattern=r"^https?://[^/\s]+/?$")
    socket: Path | None = None
    token_file: Path | None = None
    ca: Path | None = None
    """PEM file of the CA that signed the server's certificate; none: the system's."""
    via: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.url is None) == (self.socket is None):
            raise ValueError("a context has either a url or a socket")
        return self

    @property
    def where(self) -> str:
        """The address for people."""
        return self.url or str(self.socket)

    def token(self) -> str | None:
        """The bearer token, or none if the context has no token file. Raises InvalidError if the file is unreadable."""
        if self.token_file is None:
            return None
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise InvalidError(
                f"the token file cannot be read: {error.strerror}",
                field="token_file",
                value=self.token_file,
                remedy="Point the context to a readable file: serai context set NAME --token-file FILE.",
            ) from error


class Contexts(Frozen):
    """The whole file."""

    current: str | None = None
    contexts: dict[str, Context] = Field(default_factory=dict)


def config_file() -> Path:
    """Where the contexts are kept for this user."""
    named = os.environ.get(ENV_FILE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "serai" / "contexts.yaml"


def load(file: Path | None = None) -> Contexts:
    """Read the contexts; an absent file has none. Raises InvalidError with the place of what is wrong."""
    file = file or config_file()
    another = f"another file in ${ENV_FILE}"
    correct = "Correct the file, or delete it and start again with: serai context set."
    try:
        return Contexts.model_validate(YAML(typ="safe", pure=True).load(file.read_text()) or {})
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise _bad(file, f"cannot be read: {error.strerror}", f"Make it yours, or name {another}.") from error
    except UnicodeDecodeError as error:
        raise _bad(file, "is no UTF-8 text", f"Name {another}.") from error
    except (YAMLError, RecursionError) as error:
        raise _bad(file, f"is no YAML: {' '.join(str(error).split())}", correct) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _bad(file, f"has a mistake: {first['msg']}", correct, place or "file") from error


def _bad(file: Path, what: str, remedy: str, field: str = "file") -> InvalidError:
    return InvalidError(f"the context file {what}", field=field, value=file, remedy=remedy)


def save(contexts: Contexts, file: Path | None = None) -> None:
    """Write the contexts, for this user's eyes only (0600)."""
    file = file or config_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = contexts.model_dump(mode="json", exclude_defaults=True)
    atomicfile.write_text(file, yamltext.dump(document) + "\n", mode=0o600)


def put(name: str, context: Context, *, use: bool = True, file: Path | None = None) -> None:
    """Add or replace a context; `use` makes it the current one. Raises InvalidError for a name that cannot be one."""
    if not name or not name.isprintable() or name.isspace():
        raise InvalidError("this is no name for a context", field="name", value=repr(name), remedy="Give a word.")
    old = load(file)
    save(Contexts(current=name if use else old.current, contexts={**old.contexts, name: context}), file)


def use(name: str, *, file: Path | None = None) -> None:
    """Make a context the current one. Raises NotFoundError."""
    old = load(file)
    if name not in old.contexts:
        raise _unknown(name, old)
    save(old.model_copy(update={"current": name}), file)


def remove(name: str, *, file: Path | None = None) -> None:
    """Forget a context; if it was the current one there is none after. Forgetting an absent one is no error."""
    old = load(file)
    left = {key: value for key, value in old.contexts.items() if key != name}
    if left != old.contexts:
        save(Contexts(current=None if old.current == name else old.current, contexts=left), file)


def resolve(name: str | None = None, *, file: Path | None = None) -> tuple[str, Context]:
    """The context to use: `name`, else `$SERAI_CONTEXT`, else the current one, else this machine's own.

    Raises NotFoundError for a name that the file does not have, UnavailableError if there is nothing to choose.
    """
    known = load(file)
    wanted = name or os.environ.get(ENV_CONTEXT) or known.current
    if wanted is not None:
        if wanted in known.contexts:
            return wanted, known.contexts[wanted]
        if wanted != LOCAL_NAME:
            raise _unknown(wanted, known)
    if LOCAL_SOCKET.exists():
        token = LOCAL_TOKEN if os.access(LOCAL_TOKEN, os.R_OK) else None
        return LOCAL_NAME, Context(socket=LOCAL_SOCKET, token_file=token)
    if wanted is not None:
        raise UnavailableError(
            "no controller runs on this machine", field="context", value=wanted, remedy="Start one with: serai up."
        )
    names = ", ".join(sorted(known.contexts))
    other = f"use one of {names}: serai context use NAME" if names else "name one: serai context set NAME --url URL"
    raise UnavailableError(
        "no context is chosen, and no controller runs on this machine",
        remedy=f"Start one with 'serai up' or 'serai lab up', or {other}.",
    )


def _unknown(name: str, known: Contexts) -> NotFoundError:
    have = ", ".join(sorted(known.contexts))
    return NotFoundError(
        "there is no such context",
        field="context",
        value=name,
        remedy=f"Known are: {have}." if have else "Add it: serai context set NAME --url URL.",
    )
