"""Generate the Python code of the .proto files, beside them.

    python proto/generate.py            write it (`make proto`)
    python proto/generate.py --check    fail where what stands in the tree differs

Needs grpcio-tools (the `dev` extra) at the version that pyproject.toml pins: another one writes other code.
It runs `protoc -I.` from the project's root, so that the generated imports are absolute. The code of
proto/inference/ takes its descriptor pool from proto/inference/private_pool.py.
"""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_SOURCES = ("proto/tailacc/v1/*.proto", "proto/inference/v2/*.proto")
# Below this folder is `package inference`, of which other packages bring their own copies: its generated modules
# get a pool of their own (private_pool.py says how) by these changes, each of one line.
_PRIVATE_FOLDER = "proto/inference/"
_PRIVATE = {
    "from google.protobuf import descriptor_pool as _descriptor_pool\n": (
        "from proto.inference import private_pool as _descriptor_pool\n"
    ),
    "from google.protobuf.internal import builder as _builder\n": (
        "from proto.inference import private_pool as _builder\n"
    ),
}


def generate(out: Path) -> list[Path]:
    """Write the generated modules and stubs of every .proto under the folder `out`.

    Returns their paths relative to `out`. Raises RuntimeError where protoc fails (its message is on stderr).
    """
    # Imported here: `--help` and the check's caller must not need the compiler.
    from grpc_tools import protoc

    well_known = str(files("grpc_tools") / "_proto")
    sources = [str(path.relative_to(_ROOT)) for pattern in _SOURCES for path in sorted(_ROOT.glob(pattern))]
    options = [f"-I{_ROOT}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
    code = protoc.main(["protoc", *options, f"--grpc_python_out={out}", *sources])
    if code:
        raise RuntimeError(f"protoc ended with code {code} on {', '.join(sources)}")
    for source in sources:
        if source.startswith(_PRIVATE_FOLDER):
            _make_private(out / source.replace(".proto", "_pb2.py"))
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*") if path.suffix in (".py", ".pyi"))


def _make_private(module: Path) -> None:
    """Take the descriptor pool and the builder of a generated module from proto/inference/private_pool.py."""
    text = module.read_text()
    for public, private in _PRIVATE.items():
        if text.count(public) != 1:
            raise RuntimeError(f"{module.name} must hold this line once, for it to be changed: {public!r}")
        text = text.replace(public, private)
    module.write_text(text)


def differences() -> list[str]:
    """The generated files in the tree that are not what the .proto files give, each with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        found = []
        for path in fresh:
            standing = _ROOT / path
            if not standing.is_file():
                found.append(f"{path} is missing")
            elif standing.read_bytes() != (Path(folder) / path).read_bytes():
                found.append(f"{path} differs")
    here = {
        path.relative_to(_ROOT) for path in (_ROOT / "proto").rglob("*_pb2*.py*") if path.suffix != ".pyc"
    }
    return found + [f"{path} has no .proto file any more" for path in sorted(here - set(fresh))]


def main(argv: list[str] | None = None) -> int:
    """Write or check; returns 0, or 1 where the check finds a difference."""
    parser = argparse.ArgumentParser(description="Generate the Python code of the .proto files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    if not parser.parse_args(argv).check:
        with tempfile.TemporaryDirectory() as folder:
            for path in generate(Path(folder)):
                (_ROOT / path).write_bytes((Path(folder) / path).read_bytes())
                print(path)
        return 0
    found = differences()
    for line in found:
        print(f"error: {line}; run: python proto/generate.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
