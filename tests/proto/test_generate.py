import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="the generator is in the dev extra")

from proto import generate

_ROOT = Path(__file__).resolve().parents[2]


def test_check__generated_code_is_what_the_proto_files_give():
    script = [sys.executable, str(_ROOT / "proto" / "generate.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_differences__names_a_changed_a_missing_and_an_orphaned_file(tmp_path, monkeypatch):
    folder = tmp_path / "proto" / "tailacc" / "v1"
    folder.mkdir(parents=True)
    source = (_ROOT / "proto/tailacc/v1/scoring.proto").read_text()
    (folder / "scoring.proto").write_text(source.replace("string description = 9", "string words = 9"))
    for name in ("scoring_pb2.py", "scoring_pb2.pyi"):
        (folder / name).write_bytes((_ROOT / "proto/tailacc/v1" / name).read_bytes())
    (folder / "gone_pb2.py").write_text("")
    monkeypatch.setattr(generate, "_ROOT", tmp_path)
    assert generate.differences() == [
        "proto/tailacc/v1/scoring_pb2.py differs",
        "proto/tailacc/v1/scoring_pb2.pyi differs",
        "proto/tailacc/v1/scoring_pb2_grpc.py is missing",
        "proto/tailacc/v1/gone_pb2.py has no .proto file any more",
    ]
    assert generate.main(["--check"]) == 1
    generate.main([])
    assert generate.differences() == ["proto/tailacc/v1/gone_pb2.py has no .proto file any more"]


def test_scoring_proto__every_field_is_documented():
    """A comment stands above each field, value, message and call."""
    lines = (_ROOT / "proto/tailacc/v1/scoring.proto").read_text().splitlines()
    bare = [
        line.strip()
        for before, line in pairwise(lines)
        if line.strip().endswith((";", "{", "{}"))
        and not line.startswith(("syntax", "package", "//"))
        and not before.strip().startswith("//")
    ]
    assert bare == []


def test_generate__only_the_inference_protocol_has_a_pool_of_its_own(tmp_path):
    generate.generate(tmp_path)
    private = "from proto.inference import private_pool as "
    ours = (tmp_path / "proto/tailacc/v1/scoring_pb2.py").read_text()
    theirs = (tmp_path / "proto/inference/v2/inference_pb2.py").read_text()
    assert private not in ours
    assert f"{private}_descriptor_pool\n" in theirs
    assert f"{private}_builder\n" in theirs
    assert "from google.protobuf import descriptor_pool" not in theirs


def test_generate__code_that_imports_its_pool_in_another_way(tmp_path):
    module = tmp_path / "x_pb2.py"
    module.write_text("from google.protobuf import descriptor_pool\n")
    with pytest.raises(RuntimeError, match=r"x_pb2\.py must hold this line once"):
        generate._make_private(module)
