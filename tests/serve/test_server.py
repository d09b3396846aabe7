"""The server as a process: what it prints, its exit codes, and its end under load."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from data.cli import run
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.server import main

_SERVER = Path(__file__).resolve().parents[2] / "serve" / "server.py"


def test_server__one_ready_line_and_a_banner(start_server):
    server = start_server()
    host, port = server.address.rsplit(":", 1)
    assert server.ready_line == f"ready {host}:{port}"
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    code, rest, errors = server.finish(signal.SIGINT)
    assert (code, rest) == (0, "")
    for words in (
        "mean pool 32 px",
        "device   cpu",
        "inference 1",
        "in flight: 256 requests",
        "SIGINT",
        "stopped",
    ):
        assert words in errors
    assert "Traceback" not in errors


def test_server__sigterm_under_load_loses_nothing(start_server, encode, run_async):
    """Every accepted request is answered; what is not accepted is UNAVAILABLE and nothing else."""
    server = start_server("--max-batch", "4")
    image = encode(1)

    async def load() -> tuple[int, int]:
        answered = refused = 0
        stopped = asyncio.Event()

        async def caller(channel):
            nonlocal answered, refused
            stub = scoring_pb2_grpc.ScoringStub(channel)
            request = pb.ScoreRequest(images=[pb.Image(id=str(n), content=image) for n in range(8)])
            while True:
                try:
                    response = await stub.Score(request, timeout=30)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    refused += 1
                    if stopped.is_set():
                        return
                    continue
                assert len(response.results) == 8
                answered += 1
                if answered == 100:
                    server.process.send_signal(signal.SIGTERM)
                    stopped.set()

        channels = [grpc.aio.insecure_channel(server.address) for _ in range(4)]
        await asyncio.gather(*(caller(channel) for channel in channels for _ in range(4)))
        await asyncio.gather(*(channel.close() for channel in channels))
        return answered, refused

    answered, refused = run_async(load())
    code, _, errors = server.finish()
    assert code == 0
    assert refused >= 16
    assert f"stopped: {answered} requests accepted, 0 cut off" in errors


def test_server__a_second_signal_stops_at_once(start_server, make_model, encode, run_async):
    server = start_server("--max-batch", "1", "--grace-s", "600", model=make_model("slow"))

    async def scenario():
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = scoring_pb2_grpc.ScoringStub(channel)
            images = [pb.Image(id=str(n), content=encode(n)) for n in range(64)]
            call = stub.Score(pb.ScoreRequest(images=images))
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError):
                await call

    run_async(scenario())
    code, _, errors = server.finish()
    assert code == 1
    assert "1 requests accepted, 1 cut off" in errors


def test_server__a_port_in_use(start_server, model_file):
    server = start_server()
    result = subprocess.run(
        [sys.executable, str(_SERVER), "--model", str(model_file), "--listen", server.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert f"cannot listen on {server.address}" in result.stderr
    assert "Address already in use" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "nothing.onnx"), "no model file at nothing.onnx"),
        (
            ("--model", "models:tailacc"),
            "must be models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID, got 'models:tailacc'",
        ),
        ((), "no MLflow store at sqlite:///mlflow.db"),
        (("--listen", "8001"), "--listen must be HOST:PORT such as 127.0.0.1:8001, got '8001'"),
        (("--follow-s", "-1"), "--follow-s must be from 0 (never) to 86400, got -1.0"),
        (("--max-batch", "-1"), "--max-batch must be from 0 to 4096, got -1"),
        (("--limits.image-bytes", "0"), "--limits.image-bytes must be at least 1, got 0"),
        (
            ("--limits.request-bytes", "5"),
            "--limits.image-bytes (33554432) must not be above --limits.request-bytes (5)",
        ),
    ],
)
def test_server__bad_options_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    if "--listen" not in options:
        options = (*options, "--listen", "127.0.0.1:0")
    assert run(main, list(options)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_server__sigterm_while_the_model_loads(free_port):
    """A registry that accepts and never answers: health says NOT_SERVING, and the server still ends at once."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, str(_SERVER), "--listen", f"127.0.0.1:{free_port}"],
            env=os.environ | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection, grpc.insecure_channel(f"127.0.0.1:{free_port}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in errors
