"""Server reflection over two descriptor pools: the private one of `package inference`, and protobuf's default."""

from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool

from proto.inference.private_pool import POOL


class ReflectionPool:
    """Looks each name up in the private pool, then in the default one; KeyError where it is in neither.

    The private one comes first: another package's `inference` in the default pool is not what is served here. It
    has the methods that `grpc_reflection` calls, and is given to it in place of a `DescriptorPool`.
    """

    def FindFileByName(self, name: str) -> Any:
        """The FileDescriptor of a .proto."""
        return _first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The FileDescriptor that defines a full name."""
        return _first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Any:
        """The Descriptor of a message."""
        return _first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:
        """The FieldDescriptor of an extension of `message`."""
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:
        """The FieldDescriptors of all extensions of `message`."""
        return message.file.pool.FindAllExtensions(message)


def _first(find: Callable[[Any], Any]) -> Any:
    try:
        return find(POOL)
    except KeyError:
        return find(descriptor_pool.Default())
