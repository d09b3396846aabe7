"""Peers that are there no longer, though their connections are."""

import asyncio
import json
import signal
import socket
import time

import grpc
import numpy as np
import pytest

from data.scores import read_scores
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve import engine, keepalive
from serve.config import Connection, ScoreConfig, ServerConfig
from serve.lifecycle import ScoringServer
from serve.manifest import manifest_path
from serve.parts import PartStore
from serve.scoring import score

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_PING = 6


def test_client__a_server_that_stands_still_loses_its_calls_to_the_other(
    start_server, image_folder, run_async, tmp_path, monkeypatch
):
    """SIGSTOP: its port is open and its connections stand. Its calls would otherwise wait for `call_s`."""
    servers = [start_server() for _ in range(2)]
    folder, out = image_folder(12), tmp_path / "s.parquet"
    add, seen = PartStore.add, []

    def stop_one(store, row, part):
        add(store, row, part)
        seen.append(row)
        if len(seen) == 1:
            servers[0].process.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(PartStore, "add", stop_one)
    connection = Connection(
        server=",".join(server.address for server in servers),
        call_s=600,
        connect_s=3,
        silence_s=1.0,
        give_up_s=600,
    )
    config = ScoreConfig(connection=connection, images=str(folder), out=out, batch=1, calls=1, channels=1)
    assert run_async(score(config)) == 0
    scores = read_scores(out)
    assert len(scores) == 12
    assert np.isfinite(scores.logit).all()
    [run] = json.loads(manifest_path(out).read_text())["runs"]
    assert run["retries"]["UNAVAILABLE"] >= 1


def test_client__pings_while_a_call_takes_long_and_the_server_does_not_hang_up(
    run_async, model_file, encode, monkeypatch
):
    """gRPC's own server ends a connection at the third ping within five minutes (too_many_pings)."""
    load = engine.load
    monkeypatch.setattr(engine, "load", lambda content, size: (time.sleep(4.5), load(content, size))[1])

    async def scenario():
        server = ScoringServer(ServerConfig(model=str(model_file), listen="127.0.0.1:0", device="cpu"))
        address = await server.bind()
        try:
            await server.start()
            options = keepalive.client_keepalive(0.5)
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                request = pb.ScoreRequest(images=[pb.Image(id="a", content=encode(0))])
                return await scoring_pb2_grpc.ScoringStub(channel).Score(request)
        finally:
            await server.stop(5)

    assert len(run_async(scenario()).results) == 1


def test_server__hangs_up_on_a_caller_that_does_not_answer(run_async, model_file, monkeypatch):
    monkeypatch.setattr(keepalive, "_ASK_S", 0.2)
    monkeypatch.setattr(keepalive, "_ANSWER_S", 0.2)
    frames = []

    def half_open(port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
            wire.sendall(_PREFACE)
            stream = wire.makefile("rb")
            while len(head := stream.read(9)) == 9:
                frames.append(head[3])
                stream.read(int.from_bytes(head[:3], "big"))

    async def scenario():
        server = ScoringServer(ServerConfig(model=str(model_file), listen="127.0.0.1:0", device="cpu"))
        address = await server.bind()
        try:
            await asyncio.to_thread(half_open, int(address.rpartition(":")[2]))
        finally:
            await server.stop(1)

    run_async(scenario())
    assert _PING in frames


@pytest.mark.parametrize(("silence_s", "ping", "answer"), [(15.0, 10_000, 5_000), (0.3, 300, 100)])
def test_client_keepalive__together_they_are_the_silence(silence_s, ping, answer):
    options = dict(keepalive.client_keepalive(silence_s))
    assert options["grpc.keepalive_time_ms"] == ping
    assert options["grpc.keepalive_timeout_ms"] == answer
    least = dict(keepalive.server_keepalive())["grpc.http2.min_ping_interval_without_data_ms"]
    assert ping > least
