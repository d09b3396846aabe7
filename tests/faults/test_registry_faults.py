"""MLflow is away, hangs, or gives a file that the disk has no room for; model files that are damaged.

The same with a store of SQLite, and versions that do not pass their checks, are in tests/serve/test_follow.py.
"""

import asyncio
import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import grpc
import pytest

from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import ServerConfig
from serve.lifecycle import ScoringServer

_ROOT = Path(__file__).resolve().parents[2]
_SOURCE = "models:/net@champion"


class Registry:
    """An MLflow server as far as the scoring server asks it. `mode`: up, away (503) or hangs."""

    def __init__(self, folders: list[Path]) -> None:
        self.mode, self.version, self.asked = "up", 1, 0
        self.gone = threading.Event()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked += 1
                if registry.mode == "hangs":
                    registry.gone.wait(60)
                    return
                if registry.mode != "up":
                    self.send_error(503)
                    return
                path, query = urlparse(self.path).path, parse_qs(urlparse(self.path).query)
                version = query.get("version", [str(registry.version)])[0]
                if path.endswith("/get-download-uri"):
                    answer: dict[str, object] = {"artifact_uri": folders[int(version) - 1].as_uri()}
                else:
                    answer = {
                        "model_version": {"name": "net", "version": version, "source": folders[0].as_uri()}
                    }
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def registry(make_model, tmp_path, monkeypatch) -> Iterator[Registry]:
    """With two versions that tell themselves apart."""
    pytest.importorskip("mlflow", reason="MLflow is in the serve extra")
    folders = []
    for seed in (1, 2):
        folder = tmp_path / f"version-{seed}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(make_model(seed=seed).read_bytes())
        folders.append(folder)
    registry = Registry(folders)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield registry
    registry.close()


@asynccontextmanager
async def _serving(**options: object):
    settings = {"follow_s": 3600.0, "threads": 1} | options
    server = ScoringServer(ServerConfig(model=_SOURCE, listen="127.0.0.1:0", device="cpu", **settings))
    await server.bind()
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, scoring_pb2_grpc.ScoringStub(channel)
    finally:
        await server.stop(5)


def _request(image: bytes) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=[pb.Image(id="a", content=image)])


@pytest.mark.parametrize("fault", ["away", "hangs"])
def test_follow__an_mlflow_server_that_is_gone_costs_nothing_but_the_swap(
    run_async, registry, encode, monkeypatch, caplog, fault
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")

    async def scenario():
        async with _serving() as (server, stub):
            one = server.models.following[0]
            registry.mode, registry.version = fault, 2
            looking = asyncio.create_task(server.following.look(one))
            answered = []
            while not looking.done():
                answered.append((await stub.Score(_request(encode(1)), timeout=20)).model.version)
            away, registry.mode = one.away, "up"
            began = time.monotonic()
            await server.following.look(one)
            taken = time.monotonic() - began
            after = (await stub.Score(_request(encode(1)), timeout=20)).model.version
            return answered, away, after, one.away, taken, server.admission.requests

    answered, away, after, still, taken, held = run_async(scenario())
    print(f"\n{len(answered)} requests were answered meanwhile; taken up in {taken:.2f} s when it was back")
    assert (set(answered), after) == ({"1"}, "2")
    assert (away, still, held) == (True, False, 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len(warnings) == 1
    assert "version 1 goes on; models:/net@champion cannot be followed" in warnings[0]


def test_follow__a_full_disk_costs_nothing_but_the_swap(run_async, registry, encode, caplog):
    """RLIMIT_FSIZE: the kernel lets no file of this process grow above 512 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scenario():
        async with _serving() as (server, stub):
            one = server.models.following[0]
            registry.version = 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
            try:
                await server.following.look(one)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            seen = one.away, one.refusals, one.last_error
            during = (await stub.Score(_request(encode(1)), timeout=20)).model.version
            left = list(Path(server._folder.name).rglob("*.onnx"))
            await server.following.look(one)
            return seen, during, len(left), (await stub.Score(_request(encode(1)), timeout=20)).model.version

    (away, refusals, words), during, left, after = run_async(scenario())
    assert (away, refusals, during, after) == (True, 0, "1", "2")
    assert "File too large" in words
    assert left == 1  # of the version that serves
    assert "Traceback" not in caplog.text


def _start(model: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(_ROOT / "serve" / "server.py"),
        "--model",
        model,
        "--listen",
        "127.0.0.1:0",
    ]
    return subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_start__an_mlflow_server_that_is_away_is_one_line_and_exit_code_2(registry):
    registry.mode = "away"
    began = time.monotonic()
    with _start(_SOURCE) as process:
        out, errors = process.communicate(timeout=120)
    print(f"\nsaid after {time.monotonic() - began:.1f} s, imports and all")
    assert (process.returncode, out) == (2, "")
    assert f"no model 'net' with alias 'champion' in {registry.uri}" in errors
    assert "Traceback" not in errors


def test_start__sigterm_ends_a_server_whose_mlflow_hangs(registry):
    registry.mode = "hangs"
    with _start(_SOURCE) as process:
        try:
            while not registry.asked:
                assert process.poll() is None
                time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    print(f"\nended {time.monotonic() - began:.2f} s after SIGTERM")
    assert process.returncode == 0
    assert "Traceback" not in errors


_LOAD = """
import sys
from pathlib import Path
from data.errors import InputError
from serve.config import ServerConfig
from serve.loading import load_model
for path in sys.argv[1:]:
    try:
        load_model("m", path, ServerConfig(device="cpu", threads=1), None)
    except InputError as error:
        print("refused", str(error).count("\\n"), flush=True)
    else:
        print("loaded", 0, flush=True)
"""


def test_model_file__damage_anywhere_is_refused_in_one_line_or_changes_no_score(make_model, tmp_path, long):
    """Bytes that are flipped, cut or overwritten: none of them brings the process down, or an error that is not the
    user's. What is loaded has passed the golden image."""
    rng, whole = random.Random(0), make_model().read_bytes()
    paths = []
    for number in range(4000 if long else 400):
        content = bytearray(whole)
        at = rng.randrange(len(content))
        match number % 4:
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at:]
            case 2:
                content[at : at + 16] = rng.randbytes(16)
            case _:
                del content[at : at + rng.randrange(1, 200)]
        paths.append(tmp_path / f"{number}.onnx")
        paths[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *paths], capture_output=True, text=True, timeout=900, cwd=_ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = done.stdout.splitlines()
    print(f"\n{len(outcomes)} damaged files: {outcomes.count('loaded 0')} loaded, the others refused")
    assert len(outcomes) == len(paths)
    assert set(outcomes) <= {"loaded 0", "refused 0"}
    assert "refused 0" in outcomes
