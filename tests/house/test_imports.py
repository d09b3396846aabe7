"""The house holds together: who may import whom, what must load without torch, names, and entry files."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Room:
    """What the files of a room may import: `ours` by prefix (its own room always), and not `banned`."""

    ours: tuple[str, ...]
    banned: tuple[str, ...]


# The table. Everything stands on data/; these are pure numpy and lie at the bottom beside it: training, export and
# search measure on the selection part what the report measures, with the same functions.
PURE_EVAL = ("eval.metrics", "eval.calibration", "eval.intervals", "eval.ranking")
TORCH = ("torch", "torchvision", "accelerate", "onnxscript")
TABLE: dict[str, Room] = {
    #             may import of ours                    must not import
    "data": Room(("data",), (*TORCH, "mlflow", "grpc", "ray", "onnxruntime")),
    "proto": Room(("proto",), (*TORCH, "mlflow", "ray", "numpy", "onnxruntime")),
    "train": Room(("train", "data", *PURE_EVAL), ("ray", "grpc")),
    "tune": Room(("tune", "train", "data", *PURE_EVAL), ("grpc",)),
    "serve": Room(("serve", "data", "proto"), (*TORCH, "ray")),
    "eval": Room(("eval", "data", "train.tracking"), (*TORCH, "ray", "grpc", "onnxruntime")),
}
# The deployment on a cluster, which the plain server and the client do not import.
RAY_SERVE = ("serve/ray_app.py", "serve/replica.py", "serve/scaling.py")
# Modules that other rooms lean on, and the only third-party packages that they and all they import (data/
# apart) may use.
PURE: dict[str, set[str]] = {
    "eval.metrics": {"numpy"},
    "eval.calibration": {"numpy"},
    "eval.intervals": {"numpy"},
    "train.tracking": {"numpy", "mlflow"},
}

# Every file that a person runs, with arguments that make it print its help.
ENTRIES: list[tuple[str, ...]] = [
    ("train/main.py", "--help"),
    ("train/export.py", "--help"),
    ("train/send.py", "--help"),
    ("tune/search.py", "--help"),
    ("tune/promote.py", "--help"),
    ("tune/compare.py", "--help"),
    ("serve/server.py", "--help"),
    ("serve/ray_app.py", "--help"),
    ("serve/client.py", "--help"),
    ("serve/client.py", "score", "--help"),
    ("serve/client.py", "classify", "--help"),
    ("eval/report.py", "--help"),
    ("eval/compare.py", "--help"),
    ("eval/doctor.py", "--help"),
    ("eval/submit.py", "--help"),
    ("data/download.py", "--help"),
]
# Cold imports of 0.4 to 10 seconds each: nobody should wait for them to read a help text.
HEAVY = ("torch", "torchvision", "accelerate", "ray", "mlflow", "optuna", "onnx", "onnxruntime", "grpc")
HEAVY += ("matplotlib", "sklearn", "pandas")


def modules_of(room: str) -> dict[str, Path]:
    """Module name -> file, for every Python file of a room."""
    out = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


MODULES: dict[str, Path] = {name: path for room in TABLE for name, path in modules_of(room).items()}


def imports_of(text: str) -> Iterator[tuple[int, str]]:
    """(line, module) of each import, also those inside functions; relative ones start with a dot."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def breaches(room: str, where: str, text: str) -> list[str]:
    """What the file `where` of `room` imports against the table."""
    rule = TABLE[room]
    siblings = {name.split(".")[1] for name in MODULES if name.startswith(f"{room}.")}
    out = []
    for line, module in imports_of(text):
        first = module.split(".")[0]
        if module.startswith("."):
            out.append(f"{where}:{line}: relative import of '{module}'; import absolutely")
        elif first in TABLE and not within(module, rule.ours):
            out.append(f"{where}:{line}: {room}/ may not import '{module}', only {', '.join(rule.ours)}")
        elif within(module, rule.banned) and not (where in RAY_SERVE and first == "ray"):
            out.append(f"{where}:{line}: {room}/ may not import '{module}'")
        elif first in siblings and first not in TABLE and first not in sys.stdlib_module_names:
            out.append(f"{where}:{line}: bare import of the sibling '{module}' loads it twice")
    return out


@pytest.mark.parametrize("room", TABLE)
def test_imports__table(room: str) -> None:
    found = [
        breach
        for path in modules_of(room).values()
        for breach in breaches(room, str(path.relative_to(ROOT)), path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("data", "import torch.nn"),
        ("data", "from eval.metrics import average_precision"),
        ("train", "from eval import report"),
        ("train", "import eval"),
        ("train", "def f():\n    from serve.client import score"),
        ("tune", "import serve"),
        ("serve", "from torchvision import transforms"),
        ("serve", "from ray import serve"),
        ("serve", "from train.losses import bce"),
        ("eval", "from train import loop"),
        ("eval", "import torch"),
        ("proto", "from data.errors import InputError"),
        ("data", "from .labels import LabelSet"),
        ("data", "import labels"),
    ],
)
def test_imports__the_test_sees_a_breach(room: str, line: str) -> None:
    assert len(breaches(room, "file.py", line)) == 1


def test_imports__the_test_allows_what_the_table_allows() -> None:
    allowed = {
        "train": "import torch\nfrom eval import metrics\nfrom eval.metrics import x\nfrom data.labels import y",
        "eval": "from train.tracking import x\nfrom train import tracking\nimport mlflow",
        "tune": "import ray\nfrom train.config import x",
        "serve": "import grpc\nfrom proto.tailacc.v1 import scoring_pb2",
    }
    assert [breaches(room, "file.py", text) for room, text in allowed.items()] == [[], [], [], []]


@pytest.mark.parametrize("module", PURE)
def test_imports__what_others_lean_on_stays_light(module: str) -> None:
    assert module in MODULES
    todo, seen = [module], set[str]()
    while todo:
        name = todo.pop()
        seen.add(name)
        for line, imported in imports_of(MODULES[name].read_text()):
            first = imported.split(".")[0]
            if first not in TABLE:
                light = first in sys.stdlib_module_names or first in PURE[module]
                assert light, f"{name}:{line}: '{imported}' is reached from {module}"
            elif first != "data" and imported not in seen:  # data/ has its own row in the table
                todo.append(imported)


@pytest.mark.parametrize("room", ["data", "proto", "serve", "eval"])
def test_imports__room_loads_without_torch(room: str, tmp_path: Path) -> None:
    script = """
import importlib, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
    # proto.generate needs grpcio-tools, which is for developers: it is no part of what is served.
    names = [name for name in modules_of(room) if name != "proto.generate"]
    done = subprocess.run(
        [sys.executable, "-c", script, *names], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_names__no_file_shadows_an_imported_module() -> None:
    # The folder of a script is sys.path[0]: train/queue.py would stand before the standard library's queue.
    foreign = set(sys.stdlib_module_names)
    for name, owners in importlib.metadata.packages_distributions().items():
        if any(owner != "tailacc" for owner in owners):
            foreign.add(name)
    folders = [*(ROOT / room for room in TABLE), ROOT / "benchmarks", ROOT]
    names = [path for folder in folders for path in folder.glob("*.py") if path.stem != "__init__"]
    names += [ROOT / room for room in TABLE]
    assert len(names) > len(TABLE)
    assert [str(path.relative_to(ROOT)) for path in names if path.stem in foreign] == []


def own_files() -> list[Path]:
    folders = [*TABLE, "tests", "benchmarks"]
    return [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]


def test_names__no_drawer_for_everything() -> None:
    drawer = re.compile(r"(.*_)?(utils?|helpers?|misc|common)")
    assert [str(path) for path in own_files() if drawer.fullmatch(path.stem)] == []


def test_files__nothing_left_to_do_and_nothing_too_long() -> None:
    files = [path for path in own_files() if "_pb2" not in path.stem and path != Path(__file__)]
    assert [str(path) for path in files if re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text())] == []
    rooms = [path for path in files if path.relative_to(ROOT).parts[0] in TABLE]
    assert {str(path): n for path in rooms if (n := len(path.read_text().splitlines())) > 450} == {}


@pytest.mark.parametrize("entry", sorted({entry[0] for entry in ENTRIES} - {"data/download.py"}))
def test_entry__is_short(entry: str) -> None:
    assert len((ROOT / entry).read_text().splitlines()) < 80


@pytest.mark.parametrize("entry", ENTRIES, ids=" ".join)
def test_entry__help_is_fast(entry: tuple[str, ...], tmp_path: Path) -> None:
    script = """
import json, os, runpy, sys
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(sys.argv[0])
code = None
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as error:
    code = error.code
json.dump([code, sorted(set(sys.modules))], sys.stderr)
"""
    command = [sys.executable, "-c", script, "-", str(ROOT / entry[0]), *entry[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    assert code in (None, 0), done.stderr
    assert "usage:" in done.stdout
    assert set(HEAVY) & set(loaded) == set()
    assert list(tmp_path.iterdir()) == []  # to ask for help writes nothing


def test_entry__console_scripts_name_them_all() -> None:
    # Read from the file: an installed copy may be older.
    text = (ROOT / "pyproject.toml").read_text()
    scripts = re.findall(r'^tailacc-[\w-]+ = "([\w.]+):cli"$', text, flags=re.MULTILINE)
    assert sorted(scripts) == sorted({entry[0].removesuffix(".py").replace("/", ".") for entry in ENTRIES})


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.name))
def test_lock__hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert re.findall(r"\w+://\S*", text) == []
    assert "index-url" not in text
    pins = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert pins
    assert [pin.splitlines()[0] for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_lock__serving_needs_no_torch_and_the_same_versions() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE))

    serve, dev = pins("serve.txt"), pins("dev.txt")
    assert "torch" not in serve
    assert "onnxruntime-gpu" in serve
    assert {name: version for name, version in serve.items() if dev.get(name) != version} == {}
    assert "onnxruntime" not in dev  # beside onnxruntime-gpu it overwrites half of it
