"""The model changes under load, with a real MLflow registry, real files and real channels."""

import asyncio
import contextlib
import gc
import hashlib
import os
import shutil
import signal
import threading
import weakref
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from data.image import load
from proto.inference.v2 import inference_pb2 as inference
from proto.inference.v2 import inference_pb2_grpc
from tests.serve import in_process
from tests.serve.in_process import ask, fails, until


class Registry:
    """A store of MLflow in `folder` at `uri`; each `Registered` is a registered model of its own."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.mlflow = pytest.importorskip("mlflow", reason="MLflow is in the serve extra")
        self.file = folder / "mlflow.db"
        self.uri = uri
        self.client = self.mlflow.MlflowClient(self.uri)
        self.experiment = self.client.create_experiment(
            "x", artifact_location=(folder / "artifacts").as_uri()
        )
        self.count = 0


class Registered:
    """One registered model, with the alias "champion"."""

    def __init__(self, registry: Registry, *files: Path) -> None:
        registry.count += 1
        self.registry, self.name = registry, f"net{registry.count}"
        self.source = f"models:/{self.name}@champion"
        registry.client.create_registered_model(self.name)
        for file in files:
            self.add(file)
        self.promote("1")

    def add(self, file: Path) -> str:
        """One more version; returns it."""
        run = self.registry.client.create_run(self.registry.experiment).info
        folder = Path(run.artifact_uri.removeprefix("file://")) / "model"
        folder.mkdir(parents=True)
        shutil.copy(file, folder / "model.onnx")
        return str(
            self.registry.client.create_model_version(
                self.name, f"{run.artifact_uri}/model", run.run_id
            ).version
        )

    def promote(self, version: str) -> None:
        self.registry.client.set_registered_model_alias(self.name, "champion", version)


@pytest.fixture(scope="module")
def registry(tmp_path_factory, new_store):
    folder = tmp_path_factory.mktemp("registry")
    return Registry(folder, new_store(folder))


@pytest.fixture
def frozen():
    """As the server's process does it: a collection does not look at what was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def register(registry, monkeypatch):
    """Files -> a registered model with these as versions 1, 2 ... and the alias on the first."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    return lambda *files: Registered(registry, *files)


@pytest.fixture(scope="module")
def pair(make_model):
    """Two models whose outputs tell them apart."""
    return make_model(seed=1), make_model(seed=2)


def serving(source: str, **options):
    """A started server and a channel to it; the caller looks, or `follow_s` does."""
    return in_process.serving(source, **{"follow_s": 3600.0} | options)


def _expected(path: Path, images: list[bytes]) -> np.ndarray:
    """Logits of each image alone, straight from ONNX Runtime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logit"], {"image": load(image, 32)[None]})[0] for image in images])


def _infer_request(*images: bytes, name: str = "", version: str = "") -> inference.ModelInferRequest:
    raw = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    request = inference.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[raw])
    request.inputs.add(name="jpeg", datatype="BYTES", shape=[len(images)])
    request.outputs.add(name="logit")
    return request


async def _infer(channel, request: inference.ModelInferRequest) -> tuple[str, np.ndarray]:
    """(version, logits) by ModelInfer."""
    answer = await inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    return _read(answer)


def _read(answer: inference.ModelInferResponse) -> tuple[str, np.ndarray]:
    shape = tuple(answer.outputs[0].shape)
    return answer.model_version, np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(shape)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_follow__twenty_swaps_under_load_lose_nothing_and_leave_nothing(
    run_async, frozen, register, pair, encode
):
    """Every answer comes from one version, and names it; threads, files and models are as many as before."""
    images = [encode(seed) for seed in range(9)]
    logits = {str(n): _expected(path, images) for n, path in enumerate(pair, 1)}
    apart = np.abs(logits["1"] - logits["2"]).max(axis=1)
    assert apart.min() > 0.1
    model = register(*pair)
    answers: Counter[tuple[str, str]] = Counter()
    models: list[weakref.ref] = []

    def check(how: str, version: str, got: np.ndarray) -> None:
        np.testing.assert_allclose(got, logits[version][: len(got)], rtol=0, atol=1e-5)
        answers[how, version] += 1

    async def scenario():
        async with serving(model.source, threads=2, follow_s=0.02) as (server, channel):
            done = asyncio.Event()

            async def by_score(count: int) -> None:
                while not done.is_set():
                    answer = await ask(channel, *images[:count])
                    check("Score", answer.model.version, np.array([row.logits for row in answer.results]))

            async def by_infer(count: int) -> None:
                while not done.is_set():
                    check("ModelInfer", *await _infer(channel, _infer_request(*images[:count])))

            async def by_stream() -> None:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
                stream = stub.ModelStreamInfer()
                while not done.is_set():
                    for count in (1, 5):
                        await stream.write(_infer_request(*images[:count]))
                    for _ in range(2):
                        answer = await stream.read()
                        assert not answer.error_message
                        check("ModelStreamInfer", *_read(answer.infer_response))
                await stream.done_writing()

            async def swap(number: int) -> None:
                await asyncio.to_thread(model.promote, str(1 + number % 2))
                await until(lambda: server.models.following[0].swaps == number)
                models.append(weakref.ref(server.models.all()[0].engine.model))

            async def settled() -> tuple[int, ...]:
                """Python's threads, those of ONNX Runtime too, open files: the fewest of 0.4 s."""
                seen = []
                for _ in range(80):
                    await asyncio.sleep(0.005)
                    seen.append((threading.active_count(), _threads(), _open_files()))
                return tuple(min(column) for column in zip(*seen, strict=True))

            # 9 images are three batches of at most 4: a request across batches.
            clients = [
                asyncio.create_task(work)
                for work in (by_score(1), by_score(9), by_score(4), by_infer(1), by_infer(9), by_stream())
            ]
            for number in range(1, 4):
                await swap(number)
            before = await settled()
            for number in range(4, 25):
                await swap(number)
            for _ in range(20):  # the last one is still being freed
                after = await settled()
                if all(now <= then for now, then in zip(after, before, strict=True)):
                    break
            done.set()
            await asyncio.gather(*clients)
            await until(lambda: server.models.all()[0].engine.batcher.idle)
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            name, now = model.name, server.models.all()[0].version
            gone = await fails(stub.ModelInfer(_infer_request(*images[:1], version="2", name=name)))
            pinned = await _infer(channel, _infer_request(*images[:1], version=now, name=name))
            folders = os.listdir(server._folder.name)
            gc.collect()
            alive = sum(ref() is not None for ref in models)
            return before, after, gone, pinned, folders, alive, server._folder.name, server.calls.codes

    before, after, gone, pinned, folders, alive, root, codes = run_async(scenario())
    assert {method: code for method, code in codes if code != "OK"} == {
        "inference.GRPCInferenceService/ModelInfer": "NOT_FOUND"
    }
    assert set(answers) == {
        (how, version) for how in ("Score", "ModelInfer", "ModelStreamInfer") for version in ("1", "2")
    }
    assert min(answers.values()) > 20
    assert gone.code() is grpc.StatusCode.NOT_FOUND
    assert (
        gone.details()
        == f"unknown model '{model.name}' version '2'; this server has: {model.name} (version 1)"
    )
    assert pinned[0] == "1"
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)
    assert (len(folders), alive) == (1, 1)
    assert not Path(root).exists()
    print(f"answers {dict(answers)}, threads and files {before} -> {after}")


def _threads() -> int:
    """Of this process, Python's and ONNX Runtime's. Not gRPC's, whose pool grows by one when it is busy."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            found += (task / "comm").read_text().strip() not in (
                "event_engine",
                "lifeguard",
                "grpc_global_tim",
            )
    return found


def _altered(path: Path, out: Path, change) -> Path:
    """A copy with other weights and the metadata as they were."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "weights":
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), "weights"))
    onnx.save(model, out)
    return out


def _broken(kind: str, make_model, good: Path, out: Path) -> Path:
    match kind:
        case "cut off":
            out.write_bytes(good.read_bytes()[:-500])
            return out
        case "preprocessing":
            return make_model(preprocessing="another library")
        case "not finite":
            return _altered(good, out, lambda weights: weights * np.float32("nan"))
        case "golden":
            return _altered(good, out, lambda weights: weights * np.float32(2))
        case "classes":
            return make_model(classes=("cat", "bird", "person"))
        case _:
            return make_model(classes=("dog", "cat", "person"))


async def _index(channel) -> list[tuple[str, str, str]]:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    answer = await stub.RepositoryIndex(inference.RepositoryIndexRequest())
    return [(model.version, model.state, model.reason) for model in answer.models]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut off", "is not a model that ONNX Runtime can load"),
        ("preprocessing", "was trained with preprocessing another library"),
        ("not finite", "is not finite on a test image"),
        ("golden", "the golden image's logits differ"),
        ("classes", "in the same order, got 3 without dog and with bird: callers read scores by their place"),
        ("order", "in the same order, got 3 in another order"),
    ],
)
def test_follow__a_version_that_does_not_pass_is_refused_once_and_shown(
    run_async, register, make_model, pair, encode, tmp_path, caplog, kind, words
):
    model = register(pair[0], _broken(kind, make_model, pair[0], tmp_path / "broken.onnx"), pair[1])

    async def scenario():
        async with serving(model.source) as (server, channel):
            one = server.models.following[0]
            model.promote("2")
            for _ in range(3):
                await server.following.look(one)
            seen = one.refusals, one.swaps, one.refused_version, one.last_error
            index, folders = await _index(channel), os.listdir(server._folder.name)
            version = (await ask(channel, encode(1))).model.version
            model.promote("1")  # rolled back: all is well again
            await server.following.look(one)
            well = one.last_error, one.refused_version, await _index(channel)
            model.promote("3")
            await server.following.look(one)
            after = (await ask(channel, encode(1))).model.version
            return seen, index, folders, version, well, after, (one.swaps, one.refusals)

    seen, index, folders, version, well, after, counts = run_async(scenario())
    assert seen[:3] == (1, 0, "2")
    assert words in seen[3]
    assert index == [("1", "READY", ""), ("2", "UNAVAILABLE", seen[3])]
    assert len(folders) == 1
    assert (version, after) == ("1", "3")
    assert well == ("", "", [("1", "READY", "")])
    assert counts == (1, 1)
    errors = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert errors == [f"{model.name}: version 1 goes on: {seen[3]}"]
    assert "\n" not in errors[0]


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("store", "no MLflow store at sqlite:"),
        ("alias", "with alias 'champion' in sqlite:"),
        ("files", "must hold one .onnx file, found none"),
        ("bytes", "the file has SHA-256 "),
    ],
)
def test_follow__what_is_away_is_said_once_and_taken_up_when_it_is_back(
    run_async, register, registry, pair, encode, caplog, gone, words
):
    model = register(*pair)
    client = registry.client
    uri = client.get_model_version(model.name, "2").source
    file = registry.file if gone == "store" else Path(uri.removeprefix("file://"))
    hidden = file.with_name("hidden")

    async def scenario():
        async with serving(model.source) as (server, channel):
            one = server.models.following[0]
            model.promote("2")
            if gone == "alias":
                client.delete_registered_model_alias(model.name, "champion")
            elif gone == "bytes":
                client.set_model_version_tag(model.name, "2", "model.sha256", "0" * 64)
            else:
                file.rename(hidden)
            for _ in range(3):
                await server.following.look(one)
            seen = one.away, one.refusals, one.swaps, one.last_error
            version = (await ask(channel, encode(1))).model.version
            if gone == "alias":
                model.promote("2")
            elif gone == "bytes":
                digest = hashlib.sha256(pair[1].read_bytes()).hexdigest()
                client.set_model_version_tag(model.name, "2", "model.sha256", digest)
            else:
                hidden.rename(file)
            await server.following.look(one)
            after = (await ask(channel, encode(1))).model.version
            return seen, version, after, (one.away, one.swaps, one.last_error)

    seen, version, after, well = run_async(scenario())
    assert seen[:3] == (True, 0, 0)
    assert words in seen[3]
    assert (version, after, well) == ("1", "2", (False, 1, ""))
    warnings = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert warnings == [f"{model.name}: version 1 goes on; {model.source} cannot be followed: {seen[3]}"]


def _hold(server) -> threading.Event:
    """Make the model that serves now wait, in a thread of the worker, until the event is set."""
    gate, held = threading.Event(), server.models.all()[0].engine.model
    run = held.run

    def waiting(*arguments):
        gate.wait(30)
        return run(*arguments)

    held.run = waiting
    return gate


def test_follow__a_long_request_ends_with_the_version_that_took_it(run_async, register, pair, encode):
    images = [encode(seed) for seed in range(6)]
    logits = [_expected(path, images) for path in pair]
    model = register(*pair)

    async def scenario():
        async with serving(model.source, threads=2, max_batch=1) as (server, channel):
            one, old = server.models.following[0], server.models.all()[0]
            gate = _hold(server)
            # Six batches: two run, the others are decoded and wait.
            long = asyncio.create_task(ask(channel, *images))
            await until(lambda: old.engine.batcher.running == 2)
            model.promote("2")
            looking = asyncio.create_task(server.following.look(one))
            await until(lambda: one.swaps == 1)
            waiting = asyncio.create_task(ask(channel, images[0]))
            await asyncio.sleep(0.1)
            during = looking.done(), len(os.listdir(server._folder.name)), old.engine.batcher.held
            gate.set()
            answers = await asyncio.gather(long, waiting)
            await looking
            return answers, during, len(os.listdir(server._folder.name)), old.engine.batcher.idle

    answers, during, folders, idle = run_async(scenario())
    assert [answer.model.version for answer in answers] == ["1", "2"]
    for answer, wanted in zip(answers, logits, strict=True):
        got = np.array([row.logits for row in answer.results])
        np.testing.assert_allclose(got, wanted[: len(got)], rtol=0, atol=1e-5)
    assert during == (False, 2, 1)
    assert (folders, idle) == (1, True)


def test_follow__the_worker_dies_while_the_new_version_loads(run_async, register, pair, encode):
    model = register(*pair)

    async def scenario():
        async with serving(model.source) as (server, channel):
            one, old = server.models.following[0], server.models.all()[0]
            gate, begun, load = threading.Event(), threading.Event(), server.following._load

            def slowly(*arguments):
                begun.set()
                gate.wait(30)
                return load(*arguments)

            def end(*arguments):
                raise SystemExit("the worker's end")

            server.following._load = slowly
            model.promote("2")
            looking = asyncio.create_task(server.following.look(one))
            await until(begun.is_set)
            old.engine.model.run = end
            lost = await fails(ask(channel, encode(1)))
            await until(lambda: old.ready)
            before = (await ask(channel, encode(1))).model.version
            gate.set()
            await looking
            after = (await ask(channel, encode(1))).model.version
            return lost, before, after, (server.worker.deaths, old.engine.restarts, one.refusals)

    lost, before, after, counts = run_async(scenario())
    assert lost.code() is grpc.StatusCode.UNAVAILABLE
    assert (before, after, counts) == ("1", "2", (1, 1, 0))


def test_follow__the_worker_dies_while_the_old_version_answers(run_async, register, pair, encode):
    """What the old one held is given back and it is not opened again; the new one is, from its own files."""
    model = register(*pair)

    async def scenario():
        async with serving(model.source, decode_threads=1) as (server, channel):
            one, old = server.models.following[0], server.models.all()[0]
            gate = _hold(server)
            held = asyncio.create_task(ask(channel, encode(1)))
            await until(lambda: old.engine.batcher.running == 1)
            model.promote("2")
            looking = asyncio.create_task(server.following.look(one))
            await until(lambda: one.swaps == 1)
            # Of the new one, behind the one that hangs.
            queued = asyncio.create_task(ask(channel, encode(1)))
            server.worker.stall_s = 0.5
            lost = [await fails(held), await fails(queued)]
            await looking
            new = server.models.all()[0]
            await until(lambda: new.ready)
            answer = await ask(channel, encode(1))
            gate.set()
            return lost, answer.model.version, old.engine.restarts, new.engine.restarts, server.worker.deaths

    lost, version, *counts = run_async(scenario())
    assert [error.code() for error in lost] == [grpc.StatusCode.UNAVAILABLE] * 2
    assert (version, counts) == ("2", [0, 1, 1])


def test_follow__a_new_version_takes_the_place_of_one_that_cannot_be_opened_again(
    run_async, register, pair, encode
):
    model = register(*pair)

    async def scenario():
        async with serving(model.source) as (server, channel):
            one, old = server.models.following[0], server.models.all()[0]

            def broken(*arguments):
                raise SystemExit("the worker's end")

            old.engine.model.run = old.engine.model.reopen = broken
            await fails(ask(channel, encode(1)))
            model.promote("2")
            await server.following.look(one)
            return (await ask(channel, encode(1))).model.version, server.models.ready

    assert run_async(scenario()) == ("2", True)


def test_follow__an_alias_alone_is_followed_and_only_where_asked(run_async, register, pair):
    model = register(*pair)

    async def scenario(source: str, **options) -> tuple[int, bool]:
        async with serving(source, **options) as (server, _):
            return len(server.models.following), server._follow is not None

    assert run_async(scenario(model.source)) == (1, True)
    assert run_async(scenario(model.source, follow_s=0.0)) == (0, False)
    assert run_async(scenario(f"models:/{model.name}/1")) == (0, False)
    assert run_async(scenario(str(pair[0]))) == (0, False)


def test_follow__sigterm_in_the_middle_of_a_swap(
    start_server, register, make_model, pair, encode, run_async, tmp_path, monkeypatch
):
    """The version that loads is given up, what was accepted is answered, and no file is left."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = register(pair[0], make_model("slow", seed=2))
    server = start_server("--follow-s", "0.05", model=model.source)

    async def scenario() -> int:
        answered = 0
        async with grpc.aio.insecure_channel(server.address) as channel:
            await asyncio.to_thread(model.promote, "2")
            while len(list(tmp_path.glob("tailacc-models-*/*"))) < 2:
                answered += (await ask(channel, encode(1))).model.version == "1"
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(grpc.aio.AioRpcError):
                while True:
                    answered += (await ask(channel, encode(1))).model.version == "1"
            return answered

    answered = run_async(scenario())
    code, _, errors = server.finish()
    assert code == 0
    assert f"stopped: {answered} requests accepted, 0 cut off" in errors
    assert "Traceback" not in errors
    assert "serves in place of" not in errors
    assert not list(tmp_path.glob("tailacc-*"))
