"""Messages as they come from the wire."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Received:
    """A message with its size in bytes: `ByteSize` would write the whole message once more (0.25 ms for 1 MB).
    `error` where the bytes are not such a message."""

    message: Any
    size: int
    error: InputError | None = None

    def check(self) -> None:
        """Raise the error."""
        if self.error:
            raise self.error


def reader(kind: Any) -> Callable[[bytes], Received]:
    """Reads messages of the class `kind`. An error raised while reading would be logged by gRPC and sent as UNKNOWN."""

    def read(raw: bytes) -> Received:
        try:
            return Received(kind.FromString(raw), len(raw))
        except DecodeError as error:
            name = kind.DESCRIPTOR.full_name
            return Received(kind(), len(raw), InputError(f"the request is not a message {name}: {error}"))

    return read
