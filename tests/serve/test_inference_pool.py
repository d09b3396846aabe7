"""Another package with `package inference` in the same process, in either order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
# What such a package's generated module does: it puts its file, whose names are those of ours with other contents,
# into protobuf's default pool and builds its classes there.
_FOREIGN = """
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder

file = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
field = file.message_type.add(name="ModelInferRequest").field.add(name="other", number=1, label=1, type=9)
file.enum_type.add(name="DataType").value.add(name="TYPE_INVALID", number=0)
file.service.add(name="GRPCInferenceService")
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "foreign_pb2", globals())
"""
_USE = """
from proto.inference.v2 import inference_pb2 as ours
import foreign_pb2 as theirs

request = ours.ModelInferRequest(model_name="tailacc", id="7")
request.parameters["timeout"].int64_param = 5
assert ours.ModelInferRequest.FromString(request.SerializeToString()) == request
assert theirs.ModelInferRequest(other="x").SerializeToString() == b"\\n\\x01x"
assert not hasattr(theirs.ModelInferRequest(), "model_name")

from serve.inference_reflection import ReflectionPool
file = ReflectionPool().FindFileContainingSymbol("inference.GRPCInferenceService")
assert len(file.services_by_name["GRPCInferenceService"].methods) == 10, file.name
print("both")
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize(
    "first", ["import foreign_pb2", "from proto.inference.v2 import inference_pb2"], ids=["theirs", "ours"]
)
def test_private_pool__beside_another_package_inference(tmp_path, first, implementation):
    (tmp_path / "foreign_pb2.py").write_text(_FOREIGN)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", first + "\n" + _USE],
        env=os.environ
        | {
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{tmp_path}",
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("both\n", 0), result.stderr
