"""The client against real servers, and against one that misbehaves on purpose."""

import asyncio
import hashlib
import json
import re
import signal
import time
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
import pytest

from data.cli import run
from data.errors import InputError
from data.image import load
from data.scores import METADATA_KEYS, read_scores
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.client import main
from serve.config import ClassifyConfig, Connection, ScoreConfig
from serve.labelling import classify
from serve.manifest import manifest_path
from serve.scoring import score
from serve.sending import Job, split_jobs


def _offline(model, paths):
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    images = np.stack([load(path.read_bytes(), 32) for path in paths])
    return session.run(["logit", "score"], {"image": images})


def _config(address, folder, out, **options) -> ScoreConfig:
    patience = {name: options.pop(name) for name in ("connect_s", "call_s", "give_up_s") if name in options}
    connection = Connection(server=address, **({"connect_s": 10, "give_up_s": 10} | patience))
    return ScoreConfig(connection=connection, images=str(folder), out=out, **options)


def test_split_jobs__bounded_by_count_and_bytes():
    jobs = [Job(n, str(n), Path(str(n)), size) for n, size in enumerate((5, 5, 5, 20, 1, 1, 1, 1))]
    sizes = [[job.size for job in chunk] for chunk in split_jobs(jobs, 3, 12)]
    assert sizes == [[5, 5], [5], [20], [1, 1, 1], [1]]


def test_score__the_file_equals_offline_and_the_account_closes(
    start_server, model_file, image_folder, run_async, tmp_path, capsys
):
    folder = image_folder(60)
    (folder / "cut.jpg").write_bytes((folder / "img_0001.jpg").read_bytes()[:200])
    (folder / "text.jpg").write_text("this is not a picture")
    (folder / "huge.jpg").write_bytes(bytes(30_000))
    servers = [start_server("--limits.image-bytes", "20000"), start_server("--limits.image-bytes", "20000")]
    out = tmp_path / "new" / "scores.parquet"
    address = ",".join(server.address for server in servers)
    assert run_async(score(_config(address, folder, out, batch=4))) == 0
    scores = read_scores(out)
    good = sorted(folder.glob("img_*.jpg"))
    assert scores.classes == ("cat", "dog", "person")
    assert scores.image_ids == tuple(path.stem for path in good)
    logit, probability = _offline(model_file, good)
    np.testing.assert_allclose(scores.logit, logit, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores.score, probability, rtol=0, atol=1e-6)
    assert set(scores.failed) == {"cut", "text", "huge"}
    assert scores.failed["text"].startswith("bad image: ")
    assert "over the server's limit of 20000 (--limits.image-bytes)" in scores.failed["huge"]
    assert tuple(scores.metadata) == METADATA_KEYS
    assert json.loads(scores.metadata["gate"]) == {"precision": "int8", "map": 0.5}
    counts = [scores.metadata[f"images_{what}"] for what in ("sent", "scored", "failed")]
    assert counts == ["63", "60", "3"]
    assert (scores.metadata["model_version"], len(scores.metadata["model_hash"])) == ("file", 64)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "scores.failed.csv",
        "scores.manifest.json",
        "scores.parquet",
    ]
    manifest = json.loads(manifest_path(out).read_text())
    assert manifest["scores"] == {
        "file": "scores.parquet",
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    assert {key: manifest["images"][key] for key in ("sent", "scored", "failed", "data_fingerprint")} == {
        "sent": 63,
        "scored": 60,
        "failed": 3,
        "data_fingerprint": scores.metadata["data_fingerprint"],
    }
    [model] = manifest["models"]
    for key in ("name", "version", "hash"):
        assert model[key] == scores.metadata[f"model_{key}"]
    assert model["preprocessing"] == scores.metadata["preprocessing"]
    assert (model["images"], model["server_version"]) == (60, scores.metadata["server_version"])
    [client] = manifest["runs"]
    assert (client["ended"], client["images"], client["retries"]) == ("done", 63, {})
    assert client["begin"] < client["end"]
    # One image never left: it is over the limit.
    assert sum(server["images"] for server in client["servers"]) == 62
    assert manifest["options"]["batch"] == 4
    printed = capsys.readouterr()
    assert f"{out}: 63 images sent, 60 scored, 3 failed" in printed.out
    # Both servers had a part of the work.
    for server in servers:
        _, _, errors = server.finish(signal.SIGTERM)
        accepted = int(re.search(r"stopped: (\d+) requests accepted", errors)[1])
        assert accepted > 0


class Moody(scoring_pb2_grpc.ScoringServicer):
    """Answers with fixed numbers after `moods`, one an attempt: a status code to abort with, "" for success."""

    def __init__(self, moods: list[str], pushback: str | None = "30") -> None:
        self.moods, self.pushback = moods, pushback
        self.attempts = 0
        self.hash = "a" * 64
        self.in_flight = self.most = 0
        self.delay = 0.0
        self.classes = ["cat"]
        self.times: list[float] = []
        self.size = self.most_bytes = 0

    async def GetModel(self, request, context):
        return pb.GetModelResponse(
            model=pb.ModelRef(name="m", version="1", hash=self.hash),
            classes=self.classes,
            image_size=32,
            preprocessing="p",
            thresholds=[0.5],
            gate='{"map": 0.5}',
            limits=pb.Limits(request_images=8, request_bytes=1 << 20, image_bytes=1 << 20),
        )

    async def Score(self, request, context):
        mood = self.moods[self.attempts] if self.attempts < len(self.moods) else ""
        self.attempts += 1
        self.in_flight += len(request.images)
        self.most = max(self.most, self.in_flight)
        size = sum(len(image.content) for image in request.images)
        self.size += size
        self.most_bytes = max(self.most_bytes, self.size)
        await asyncio.sleep(self.delay)
        self.in_flight -= len(request.images)
        self.size -= size
        self.times.append(time.monotonic())
        if mood == "HANG":
            await asyncio.sleep(60)
        if mood and mood != "INFERENCE":
            pushed = mood == "RESOURCE_EXHAUSTED" and self.pushback
            trailing = (("grpc-retry-pushback-ms", self.pushback),) if pushed else ()
            await context.abort(grpc.StatusCode[mood], "a mood", trailing)
        code = pb.ImageStatus.CODE_INFERENCE_FAILED if mood else pb.ImageStatus.CODE_OK
        row = {} if mood else {"logits": [1.0], "scores": [0.5]}
        results = [
            pb.ImageResult(id=image.id, status=pb.ImageStatus(code=code, message="oh"), **row)
            for image in request.images
        ]
        return pb.ScoreResponse(results=results, model=pb.ModelRef(name="m", version="1", hash=self.hash))


async def _against(servicer, folder, out, **options) -> int:
    server = grpc.aio.server()
    scoring_pb2_grpc.add_ScoringServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await score(_config(f"127.0.0.1:{port}", folder, out, **options))
    finally:
        await server.stop(0)


def test_score__retries_what_may_pass(image_folder, run_async, tmp_path):
    servicer = Moody(["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INFERENCE", "CANCELLED"])
    out = tmp_path / "scores.parquet"
    assert run_async(_against(servicer, image_folder(3), out, calls=1)) == 0
    assert len(read_scores(out)) == 3
    assert servicer.attempts == 6
    [client] = json.loads(manifest_path(out).read_text())["runs"]
    assert client["retries"] == {
        "UNAVAILABLE": 1,
        "RESOURCE_EXHAUSTED": 1,
        "DEADLINE_EXCEEDED": 1,
        "CANCELLED": 1,
    }


def test_score__a_pushback_is_waited_for(image_folder, run_async, tmp_path):
    """With 8 calls in flight the server is left alone for what it asked for, by all of them."""
    servicer = Moody(["RESOURCE_EXHAUSTED"] * 2, pushback="700")
    servicer.delay = 0.01
    assert run_async(_against(servicer, image_folder(40), tmp_path / "s.parquet", calls=2, batch=4)) == 0
    gaps = np.diff(servicer.times)
    assert gaps.max() >= 0.65
    assert servicer.attempts == 12


def test_score__a_call_that_never_ends_is_bounded(image_folder, run_async, tmp_path, capsys):
    servicer = Moody(["HANG"] * 9)
    out = tmp_path / "s.parquet"
    assert run_async(_against(servicer, image_folder(2), out, calls=1, call_s=0.2)) == 1
    assert servicer.attempts == 3
    assert "3 times no answer within 0.2 s (--call-s) to a call of 2 images" in capsys.readouterr().err


def test_score__gives_up_naming_the_limit(image_folder, run_async, tmp_path, capsys):
    servicer = Moody(["UNAVAILABLE"] * 99)
    out = tmp_path / "s.parquet"
    assert run_async(_against(servicer, image_folder(2), out, calls=2, batch=1, give_up_s=0.5)) == 1
    message = capsys.readouterr().err
    assert "the limit is 0.5 s (--give-up-s); the last answer: 127.0.0.1:" in message
    assert "UNAVAILABLE: a mood. 0 of 2 images are kept in" in message


@pytest.mark.parametrize(
    ("moods", "attempts", "words"),
    [
        (["INTERNAL"], 1, "INTERNAL: a mood"),
        (["INVALID_ARGUMENT"], 1, "INVALID_ARGUMENT: a mood"),
        (["RESOURCE_EXHAUSTED"], 1, "RESOURCE_EXHAUSTED: a mood"),
        (["UNIMPLEMENTED"], 1, "UNIMPLEMENTED: a mood"),
    ],
)
def test_score__what_cannot_pass_is_not_tried_again(
    image_folder, run_async, tmp_path, capsys, moods, attempts, words
):
    servicer = Moody(moods, pushback=None)
    out = tmp_path / "scores.parquet"
    assert run_async(_against(servicer, image_folder(3), out, calls=1)) == 1
    assert servicer.attempts == attempts
    assert not out.exists()
    message = capsys.readouterr().err
    assert words in message
    assert "0 of 3 images are kept" in message


def test_score__an_image_that_the_model_always_fails_on_is_a_failure(
    image_folder, run_async, tmp_path, capsys
):
    out = tmp_path / "scores.parquet"
    assert run_async(_against(Moody(["INFERENCE"] * 99), image_folder(3), out, calls=1)) == 1
    scores = read_scores(out)
    assert len(scores) == 0
    assert scores.failed == {f"img_000{n}": "inference failed: oh" for n in range(3)}
    assert "no image could be scored" in capsys.readouterr().err


def test_score__images_in_flight_are_bounded(image_folder, run_async, tmp_path):
    servicer = Moody([])
    servicer.delay = 0.02
    assert run_async(_against(servicer, image_folder(60), tmp_path / "s.parquet", calls=3, batch=4)) == 0
    assert 4 < servicer.most <= 12


def test_score__bytes_in_flight_are_bounded(image_folder, run_async, tmp_path):
    servicer, folder = Moody([]), image_folder(60)
    servicer.delay = 0.02
    largest = max(path.stat().st_size for path in folder.iterdir())
    options = {"calls": 8, "batch": 1, "inflight_bytes": 3 * largest}
    assert run_async(_against(servicer, folder, tmp_path / "s.parquet", **options)) == 0
    assert largest < servicer.most_bytes <= 3 * largest
    assert 1 < servicer.most < 8


def _changing(servicer: Moody, **change: object) -> Moody:
    """The model of `servicer` is another one after its first answer."""
    answer = servicer.Score

    async def changing(request, context):
        response = await answer(request, context)
        for name, value in change.items():
            setattr(servicer, name, value)
        return response

    servicer.Score = changing
    return servicer


def test_score__a_model_that_changes_stops_the_run(image_folder, run_async, tmp_path, capsys):
    servicer = _changing(Moody([]), hash="b" * 64)
    folder, out = image_folder(12), tmp_path / "scores.parquet"
    assert run_async(_against(servicer, folder, out, calls=1, batch=4)) == 1
    message = capsys.readouterr().err
    assert "the model changed: 127.0.0.1:" in message
    assert "--allow-model-change goes on and lists both in the manifest" in message
    assert "4 of 12 images are kept" in message
    assert not out.exists()
    with pytest.raises(InputError, match="holds parts of another run: model hash was aaaa"):
        run_async(_against(servicer, folder, out))
    assert run_async(_against(servicer, folder, out, allow_model_change=True)) == 0
    manifest = json.loads(manifest_path(out).read_text())
    assert [(model["hash"][0], model["images"]) for model in manifest["models"]] == [("a", 4), ("b", 8)]
    assert [client["images"] for client in manifest["runs"]] == [4, 8]
    assert manifest["runs"][0]["ended"].startswith("stopped: the model changed")


def test_score__a_model_may_change_where_that_is_allowed(image_folder, run_async, tmp_path, capsys):
    servicer = _changing(Moody([]), hash="b" * 64)
    out = tmp_path / "scores.parquet"
    options = {"calls": 1, "batch": 4, "allow_model_change": True}
    assert run_async(_against(servicer, image_folder(12), out, **options)) == 0
    manifest = json.loads(manifest_path(out).read_text())
    assert [(model["hash"][0], model["images"]) for model in manifest["models"]] == [("a", 4), ("b", 8)]
    metadata = read_scores(out).metadata
    assert (metadata["model_hash"], metadata["gate"]) == ("a" * 64 + "," + "b" * 64, "")
    assert "holds scores of 2 models" in capsys.readouterr().err


def test_score__a_model_with_other_classes_is_never_allowed(image_folder, run_async, tmp_path, capsys):
    servicer = _changing(Moody([]), hash="b" * 64, classes=["dog"])
    out = tmp_path / "scores.parquet"
    options = {"calls": 1, "batch": 4, "allow_model_change": True}
    assert run_async(_against(servicer, image_folder(12), out, **options)) == 1
    assert "with other classes" in capsys.readouterr().err
    assert not out.exists()


def test_score__pixels_need_the_preprocessing_of_the_model(image_folder, run_async, tmp_path):
    with pytest.raises(InputError, match="--send pixels needs the decode and resize of the model, p, and"):
        run_async(_against(Moody([]), image_folder(1), tmp_path / "s.parquet", send="pixels"))


def test_score__servers_of_different_models_are_refused(
    start_server, make_model, image_folder, run_async, tmp_path
):
    address = ",".join((start_server().address, start_server(model=make_model(seed=1)).address))
    with pytest.raises(InputError, match="the servers have different models"):
        run_async(score(_config(address, image_folder(1), tmp_path / "s.parquet")))


def test_score__a_server_that_is_not_there(
    image_folder, run_async, tmp_path, free_port, start_server, capsys
):
    nowhere = f"127.0.0.1:{free_port}"
    folder = image_folder(1)
    with pytest.raises(InputError) as info:
        run_async(score(_config(nowhere, folder, tmp_path / "s.parquet", connect_s=0.5)))
    assert str(info.value) == (
        f"no server is ready after 0.5 s: {nowhere} does not answer. Start one: python serve/server.py "
        f"--listen {nowhere}, or name another: --server HOST:PORT"
    )
    both = f"{nowhere},{start_server().address}"
    assert run_async(score(_config(both, folder, tmp_path / "s.parquet", connect_s=1.5))) == 0
    assert f"warning: going on without {nowhere}" in capsys.readouterr().err


def test_score__one_of_several_models(start_server, make_model, image_folder, run_async, tmp_path):
    models = {name: make_model(seed=seed) for name, seed in (("first", 0), ("second", 1))}
    server = start_server(model=",".join(f"{name}={path}" for name, path in models.items()))
    folder, out = image_folder(3), tmp_path / "s.parquet"
    for name, path in (("", models["first"]), ("second", models["second"])):
        config = ScoreConfig(Connection(server.address, model=name), images=str(folder), out=out)
        assert run_async(score(config)) == 0
        logit, _ = _offline(path, sorted(folder.iterdir()))
        np.testing.assert_allclose(read_scores(out).logit, logit, rtol=0, atol=1e-6)
    with pytest.raises(
        InputError, match=r"unknown model 'third'; this server has: first .*, second .*--model"
    ):
        run_async(score(ScoreConfig(Connection(server.address, model="third"), images=str(folder), out=out)))


@pytest.mark.parametrize("server", ["", "host", "host:", ":1", "host:0", "host:99999", "a:1,,b:2", "a:1,b"])
def test_connection__a_bad_address_is_named(server):
    with pytest.raises(InputError, match="--server"):
        Connection(server=server).check()


def test_classify__prints_labels_above_their_thresholds(
    start_server, model_file, image_folder, run_async, capsys
):
    folder = image_folder(4)
    (folder / "bad.jpg").write_text("not a picture")
    paths = (*sorted(folder.glob("img_*")), folder / "bad.jpg")
    connection = Connection(server=start_server().address)
    assert run_async(classify(ClassifyConfig(paths, connection))) == 1
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    _, scores = _offline(model_file, paths[:4])
    shown = [
        f"{name} {value:.2f}"
        for row in scores
        for name, value, threshold in zip(("cat", "dog", "person"), row, (0.5, 0.4, 0.6), strict=True)
        if value > threshold
    ]
    assert shown
    for label in shown:
        assert label in printed
    assert "bad image: it is text" in printed
    with pytest.raises(InputError, match=r"no image file at nowhere\.jpg"):
        run_async(classify(ClassifyConfig((Path("nowhere.jpg"),), connection)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["classify"], "classify needs at least one image file"),
        (["score", "--images", "."], "no image in .: it holds no file that ends in .jpg, .jpeg, .png"),
        (["score", "--batch", "0"], "--batch must be from 1 to 1024, got 0"),
        (["score", "--give-up-s", "0"], "--give-up-s must be above 0, got 0"),
        (["score", "--inflight-bytes", "0"], "--inflight-bytes must be at least 1, got 0"),
        (["score", "--out", "."], "--out must be a file such as scores.parquet, got a folder"),
    ],
)
def test_client__bad_options_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert run(main, options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1
