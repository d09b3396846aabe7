"""The Ray Serve deployment on two nodes: answers and errors as the plain server's; a replica and a node are killed."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from benchmarks.tuning.nodes import kill_family
from proto.inference.v2 import inference_pb2, inference_pb2_grpc
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import Connection
from serve.ray_proxy import REPLICA_KEY
from serve.remote import Servers

pytest.importorskip("ray.serve")
_ENTRY = Path(__file__).resolve().parents[2] / "serve" / "ray_app.py"
_LIMITS = ("--limits.request-images", "8", "--limits.request-bytes", "60000", "--limits.image-bytes", "30000")


@pytest.fixture
def start_app(cluster: Any, model_file: Path) -> Iterator[Callable[..., tuple[Any, str, list[str]]]]:
    """Start the deployment on `cluster`; returns its process, its address, and the lines of its stderr."""
    started = []

    def start(*options: str) -> tuple[Any, str, list[str]]:
        command = [sys.executable, str(_ENTRY), "--model", str(model_file), "--listen", "127.0.0.1:0"]
        command += ["--address", cluster.address, "--proxies", "head", *_LIMITS, *options]
        process = psutil.Popen(
            command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        errors: list[str] = []
        threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True).start()
        line = process.stdout.readline()
        assert line.startswith("ready "), "".join(errors)
        return process, line.split()[1], errors

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def _is_replica(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return "ServeReplica" in " ".join(process.cmdline())
    return False


def _of(node: psutil.Process) -> list[psutil.Process]:
    return [process for process in node.children(recursive=True) if _is_replica(process)]


async def _errors(address: str, encode: Callable[..., bytes]) -> list[Any]:
    """What one and the same caller gets for requests that are wrong, each in its way."""
    out: list[Any] = []
    good = pb.Image(id="a", content=encode(1))
    requests = [
        pb.ScoreRequest(),
        pb.ScoreRequest(images=[good, good]),
        pb.ScoreRequest(images=[pb.Image(id=str(n), content=b"x") for n in range(9)]),
        pb.ScoreRequest(images=[pb.Image(id="a", content=b"x" * 70000)]),
        pb.ScoreRequest(images=[good], model="other"),
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = scoring_pb2_grpc.ScoringStub(channel)
        for request in requests:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Score(request, timeout=30)
            out.append((caught.value.code(), caught.value.details()))
        score = channel.unary_unary("/tailacc.v1.Scoring/Score")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await score(b"\xff\xff", timeout=30)
        out.append((caught.value.code(), caught.value.details()))
        mixed = [good, pb.Image(id="b", content=b"no image"), pb.Image(id="c", content=b"x" * 30001)]
        answer = await stub.Score(pb.ScoreRequest(images=mixed), timeout=30)
        out.append(answer.SerializeToString(deterministic=True))
        out.append((await stub.GetModel(pb.GetModelRequest(), timeout=30)).classes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(pb.ScoreRequest(images=[good]), timeout=0)
        out.append(caught.value.code())
        inference = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        out.append(await inference.ModelMetadata(inference_pb2.ModelMetadataRequest(name="tailacc")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference.ModelInfer(inference_pb2.ModelInferRequest(model_name="tailacc"))
        out.append((caught.value.code(), caught.value.details()))
    return out


async def _who(address: str, encode: Callable[..., bytes]) -> str:
    """Which replica answers a call; "" where none does."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = scoring_pb2_grpc.ScoringStub(channel).Score(
            pb.ScoreRequest(images=[pb.Image(id="a", content=encode(1))]), timeout=20
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call
            return dict(await call.trailing_metadata())[REPLICA_KEY]
    return ""


async def _under_load(address: str, encode: Callable[..., bytes], act: Callable[[], None]) -> list[str]:
    """Callers send calls of four images; `act` once some are answered. Returns the ids as they were answered."""
    answered: list[str] = []
    acted = asyncio.Event()
    contents = [encode(seed) for seed in range(8)]

    async def caller(servers: Servers, number: int) -> None:
        for call in range(10_000):
            ids = [f"{number}/{call}/{image}" for image in range(4)]
            images = [pb.Image(id=name, content=contents[n]) for n, name in enumerate(ids)]
            answers = await servers.score(images)
            assert [answer.result.id for answer in answers] == ids
            assert {answer.result.status.code for answer in answers} == {pb.ImageStatus.CODE_OK}
            answered.extend(ids)
            if len(answered) > 200 and not acted.is_set():
                acted.set()
                await asyncio.to_thread(act)
                after.append(len(answered))
            if after and len(answered) > after[0] + 400:
                return

    after: list[int] = []
    async with Servers(Connection(server=address, call_s=20.0), channels=2) as servers:
        await asyncio.gather(*(caller(servers, number) for number in range(6)))
    return answered


def test_ray_app__errors_a_killed_replica_and_a_killed_node(
    cluster: Any, start_app: Any, start_server: Any, encode: Any, run_async: Any
) -> None:
    head, node = cluster.start("--num-cpus", "1"), cluster.start("--num-cpus", "1")
    process, address, errors = start_app("--replicas", "2", "2")
    plain = start_server(*_LIMITS)
    assert run_async(_errors(address, encode)) == run_async(_errors(plain.address, encode))

    victim, other = _of(head)[0], _of(node)[0]
    assert victim.pid != other.pid
    answered = run_async(_under_load(address, encode, victim.kill), 100)
    assert len(answered) == len(set(answered)) > 600
    assert not victim.is_running()

    answered = run_async(_under_load(address, encode, lambda: kill_family(node)), 100)
    assert len(answered) == len(set(answered)) > 600
    assert run_async(_who(address, encode))

    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0, "".join(errors)
