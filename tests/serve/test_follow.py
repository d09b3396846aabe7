"""The model changes under load, with a real MLflow registry, real files and real channels."""

import asyncio
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from contextlib import asynccontextmanager
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
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import ServerConfig
from serve.lifecycle import ScoringServer

_SERVER = Path(__file__).resolve().parents[2] / "serve" / "server.py"


class Registry:
    """A store of MLflow in `folder`; each `Registered` is a registered model of its own."""

    def __init__(self, folder: Path) -> None:
        self.mlflow = pytest.importorskip("mlflow", reason="MLflow is in the serve extra")
        self.file = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.file}"
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
def registry(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry"))


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


@asynccontextmanager
async def serving(source: str, **options):
    """A started server and a channel to it; the caller looks, or `follow_s` does."""
    settings = {"threads": 1, "follow_s": 3600.0} | options
    server = ScoringServer(ServerConfig(**settings, model=source, listen="127.0.0.1:0", device="cpu"))
    await server.bind()
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.stop(5)


def _expected(path: Path, images: list[bytes]) -> np.ndarray:
    """Logits of each image alone, straight from ONNX Runtime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logit"], {"image": load(image, 32)[None]})[0] for image in images])


async def _score(channel, *images: bytes, **options):
    request = pb.ScoreRequest(images=[pb.Image(id=str(n), content=image) for n, image in enumerate(images)])
    return await scoring_pb2_grpc.ScoringStub(channel).Score(request, **options)


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


async def _fails(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call
    return info.value


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


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
                    answer = await _score(channel, *images[:count])
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
                await _until(lambda: server.following.swaps == number)
                models.append(weakref.ref(server.models.all()[0].engine.model))

            async def settled() -> tuple[int, ...]:
                """Python's threads, all of the process (ONNX Runtime's with them), open files: the fewest of 0.4 s."""
                seen = []
                for _ in range(80):
                    await asyncio.sleep(0.005)
                    seen.append((threading.active_count(), len(os.listdir("/proc/self/task")), _open_files()))
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
            after = await settled()
            done.set()
            await asyncio.gather(*clients)
            await _until(lambda: server.models.all()[0].engine.batcher.idle)
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            name, now = model.name, server.models.all()[0].version
            gone = await _fails(stub.ModelInfer(_infer_request(*images[:1], version="2", name=name)))
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
    assert after == before
    assert (len(folders), alive) == (1, 1)
    assert not Path(root).exists()
    print(f"answers {dict(answers)}, threads and files {before} -> {after}")
