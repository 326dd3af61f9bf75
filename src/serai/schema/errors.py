"""The error tree: small, with stable codes.

An error says what was attempted, on what, why it failed, and what to do. It travels as `ErrorInfo` in API bodies, bus
replies and job records, and becomes the same exception class again at the other end.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class ErrorInfo(BaseModel):
    """The travelling form of an error. `field` is a path such as `spec.memory`; `value` is what was given for it."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    field: str | None = None
    value: str | None = None
    remedy: str | None = None

    def sentence(self) -> str:
        """One line for people: message, the field with its value, and the remedy."""
        parts = [self.message.rstrip(".")]
        if self.field is not None:
            parts.append(f"{self.field}: {self.value}" if self.value is not None else self.field)
        text = " (".join(parts) + (")" if self.field is not None else "")
        return f"{text}. {self.remedy}" if self.remedy else f"{text}."


class SeraiError(Exception):
    """Base of all errors that a user or another part of Serai may see."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, field: str | None = None, value: object = None, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.info = ErrorInfo(
            code=self.code,
            message=message,
            field=field,
            value=None if value is None else str(value),
            remedy=remedy,
        )

    def __str__(self) -> str:
        return self.info.sentence()


class InvalidError(SeraiError):
    """The request is wrong in itself: a field's value cannot be used."""

    code = "invalid"
    status = 422


class TooLargeError(SeraiError):
    """The request's body is longer than any that could mean something."""

    code = "too_large"
    status = 413


class MediaTypeError(SeraiError):
    """The request's body is of a type that is not read here."""

    code = "media_type"
    status = 415


class NotFoundError(SeraiError):
    """What the request names does not exist."""

    code = "not_found"
    status = 404


class ConflictError(SeraiError):
    """The request is sound, but not in the present state (name taken, VM on the move, VM running)."""

    code = "conflict"
    status = 409


class UnauthorizedError(SeraiError):
    """No valid credential came with the request."""

    code = "unauthorized"
    status = 401


class CapacityError(SeraiError):
    """Nothing has room for it: memory, disk space, addresses."""

    code = "capacity"
    status = 409


class UnsupportedError(SeraiError):
    """This machine or QEMU cannot do it; the remedy says what would be needed."""

    code = "unsupported"
    status = 409


class UnavailableError(SeraiError):
    """A part that is needed does not answer: an offline host, no bus, no target."""

    code = "unavailable"
    status = 503


class StaleError(SeraiError):
    """The command is older than what the receiver already carried out (generation or lease epoch)."""

    code = "stale"
    status = 409


class TakenError(StaleError):
    """The lease epoch was granted to another host before: who grants it again has an old database."""

    code = "taken"


class InterruptedByRestartError(SeraiError):
    """The work was begun, and whoever did it was restarted in a place where it cannot be taken up."""

    code = "interrupted"
    status = 503


class CancelledByUserError(SeraiError):
    """The job was cancelled on request and undone."""

    code = "cancelled"
    status = 409


class HostError(SeraiError):
    """An operation on a host failed: a program, the kernel or QEMU said no."""

    code = "host_failed"
    status = 500


TREE: dict[str, type[SeraiError]] = {
    kind.code: kind
    for kind in (
        SeraiError,
        InvalidError,
        TooLargeError,
        MediaTypeError,
        NotFoundError,
        ConflictError,
        UnauthorizedError,
        CapacityError,
        UnsupportedError,
        UnavailableError,
        StaleError,
        TakenError,
        InterruptedByRestartError,
        CancelledByUserError,
        HostError,
    )
}


def from_info(info: ErrorInfo) -> SeraiError:
    """The exception for a travelling error; an unknown code (a newer peer's) becomes a plain SeraiError."""
    error = TREE.get(info.code, SeraiError)(info.message)
    error.info = info
    return error
