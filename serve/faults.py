"""The errors of the domain, free of gRPC: `serve.errors` says which status each becomes."""

from collections.abc import Iterable
from typing import ClassVar


class ServerFull(RuntimeError):
    """No room for the request now. `retry_ms` says in how many milliseconds to try again, `reason` what is full."""

    REASONS: ClassVar = ("requests", "images", "bytes", "memory", "deadline")

    def __init__(self, message: str, retry_ms: int, reason: str) -> None:
        super().__init__(message)
        self.retry_ms, self.reason = retry_ms, reason


class NotAccepting(RuntimeError):
    """The server is loading its model, or stopping. Another server, or the same one later, may take it."""


class ModelDown(RuntimeError):
    """The inference worker of the model has died or hangs; what it held is given back. Trying again may help."""


class ModelNotFound(LookupError):
    """No model of that name and version is served."""

    def __init__(self, name: str, version: str, choices: Iterable[str]) -> None:
        wanted = f"'{name}' version '{version}'" if version else f"'{name}'"
        super().__init__(f"unknown model {wanted}; this server has: {', '.join(sorted(choices))}")


class NotAuthenticated(RuntimeError):
    """The caller showed no token, or none that the server has. The message never holds what it showed."""


class NotPermitted(RuntimeError):
    """The caller's token is not for calls of this group."""


class InferenceFailed(RuntimeError):
    """The model failed on an image of a request that wanted all or nothing. Trying again may help."""


class NotSupported(RuntimeError):
    """A call of a published protocol that this server does not have."""
