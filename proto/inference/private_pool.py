"""The descriptor pool of the Open Inference Protocol's generated code, and the message classes built from it.

protobuf's default pool holds one definition of a full name in a process, and several packages (tritonclient,
KServe's and MLServer's) define `package inference` there, each from a file of its own: whichever is imported second
fails. The generated module takes its pool and its builder from here instead (`proto/generate.py` changes those two
imports), so both may be imported, in either order.

The builder is here because protobuf's own puts each class into the default symbol database, which with the
implementation in Python puts its descriptor into the default pool after all.
"""

from typing import Any

from google.protobuf import message, reflection
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal import enum_type_wrapper
from google.protobuf.internal.builder import BuildMessageAndEnumDescriptors

__all__ = ["POOL", "BuildMessageAndEnumDescriptors", "BuildTopDescriptorsAndMessages", "Default"]

POOL = DescriptorPool()


def Default() -> DescriptorPool:
    """The pool, by the name that the generated code calls."""
    return POOL


def BuildTopDescriptorsAndMessages(file: Any, module_name: str, module: dict[str, Any]) -> None:
    """Put the enums, services and message classes of `file` into `module`, by the name that generated code calls."""
    for name, enum in file.enum_types_by_name.items():
        module["_" + name.upper()] = enum
        module[name] = enum_type_wrapper.EnumTypeWrapper(enum)
        module.update((value.name, value.number) for value in enum.values)
    for name, service in file.services_by_name.items():
        module["_" + name.upper()] = service
    for name, descriptor in file.message_types_by_name.items():
        module[name] = _message_class(module_name, descriptor, "")


def _message_class(module_name: str, descriptor: Any, prefix: str) -> Any:
    nested = {
        name: _message_class(module_name, inner, f"{prefix}{descriptor.name}.")
        for name, inner in descriptor.nested_types_by_name.items()
    }
    attributes = nested | {
        "DESCRIPTOR": descriptor,
        "__module__": module_name,
        "__qualname__": prefix + descriptor.name,
    }
    return reflection.GeneratedProtocolMessageType(descriptor.name, (message.Message,), attributes)
