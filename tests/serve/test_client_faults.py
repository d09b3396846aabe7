"""The client through the faults of a real run: real servers and clients, killed, stopped and started again."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from data.errors import InputError
from data.image import load
from data.scores import failures_path, read_scores
from serve.client import main
from serve.config import Connection, ScoreConfig
from serve.manifest import manifest_path
from serve.parts import PartStore, parts_folder
from serve.scoring import score

_CLIENT = Path(__file__).resolve().parents[2] / "serve" / "client.py"


def _offline(model, paths):
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    images = np.stack([load(path.read_bytes(), 32) for path in paths])
    return session.run(["logit", "score"], {"image": images})


def _config(address, folder, out, **options) -> ScoreConfig:
    connection = Connection(server=address, connect_s=10, give_up_s=options.pop("give_up_s", 30))
    return ScoreConfig(connection=connection, images=str(folder), out=out, **options)


def _start_client(address, folder, out, *options) -> subprocess.Popen:
    command = [sys.executable, str(_CLIENT), "score", "--server", address, "--images", str(folder)]
    command += ["--out", str(out), "--batch", "1", "--calls", "2", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _kept(out) -> int:
    """How many images stand in the parts on disk."""
    state = parts_folder(out) / "state.bin"
    return np.count_nonzero(np.fromfile(state, np.uint8)) if state.exists() else 0


def _wait(what, limit=60.0):
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def at_image(monkeypatch):
    """Do something when the client has the outcome of so many images."""

    def arrange(number, action):
        add, seen = PartStore.add, []

        def watched(store, row, part):
            add(store, row, part)
            seen.append(row)
            if len(seen) == number:
                action()

        monkeypatch.setattr(PartStore, "add", watched)

    return arrange


def _require_complete(out, model, folder):
    scores = read_scores(out)
    paths = sorted(folder.iterdir())
    logit, _ = _offline(model, paths)
    assert scores.image_ids == tuple(path.stem for path in paths)
    np.testing.assert_allclose(scores.logit, logit, rtol=0, atol=1e-5)
    manifest = json.loads(manifest_path(out).read_text())
    assert manifest["images"]["sent"] == manifest["images"]["scored"] + manifest["images"]["failed"]
    assert sum(run["images"] for run in manifest["runs"]) == manifest["images"]["sent"]
    assert not parts_folder(out).exists()
    assert not failures_path(out).exists()
    return manifest


@pytest.mark.parametrize(
    ("signal_number", "code", "ended"), [(signal.SIGKILL, -9, "killed"), (signal.SIGINT, 130, "interrupted")]
)
def test_client__goes_on_after(start_server, make_model, image_folder, tmp_path, signal_number, code, ended):
    """Stopped in the middle, the same command finishes, and scores no image again that was on disk."""
    folder, out, model = image_folder(40), tmp_path / "scores.parquet", make_model("slow")
    server = start_server("--max-batch", "1", model=model)
    first = _start_client(server.address, folder, out)
    _wait(lambda: _kept(out) or first.poll() is not None)
    first.send_signal(signal_number)
    _, errors = first.communicate()
    assert first.returncode == code
    assert not out.exists()
    kept = _kept(out)
    assert 0 < kept < 40
    if signal_number == signal.SIGINT:
        assert f"{kept} of 40 images are kept in {parts_folder(out)}: the same command goes on" in errors
    second = _start_client(server.address, folder, out)
    printed, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert int(re.search(r"going on from (\d+) images", errors)[1]) == kept
    assert "40 images sent, 40 scored, 0 failed" in printed
    manifest = _require_complete(out, model, folder)
    assert [run["ended"] for run in manifest["runs"]] == [ended, "done"]
    assert [run["images"] for run in manifest["runs"]] == [kept, 40 - kept]
    assert sum(server["images"] for server in manifest["runs"][1]["servers"]) == 40 - kept


def test_score__a_server_that_dies_leaves_its_work_to_the_other(
    start_server, make_model, image_folder, run_async, tmp_path, at_image
):
    model = make_model("slow")
    servers = [start_server("--max-batch", "2", model=model) for _ in range(2)]
    folder, out = image_folder(24), tmp_path / "s.parquet"
    at_image(4, servers[0].process.kill)
    address = ",".join(server.address for server in servers)
    assert run_async(score(_config(address, folder, out, batch=2, calls=2))) == 0
    [run] = _require_complete(out, model, folder)["runs"]
    assert sum(run["retries"].values()) >= 1
    assert [server["images"] for server in run["servers"]][1] >= 12


def test_score__a_server_that_dies_and_comes_back(
    start_server, make_model, image_folder, run_async, tmp_path, free_port, at_image
):
    model, listen = make_model("slow"), f"127.0.0.1:{free_port}"
    server = start_server("--max-batch", "2", model=model, listen=listen)
    folder, out = image_folder(16), tmp_path / "s.parquet"

    async def scenario():
        dead = asyncio.Event()
        at_image(4, lambda: (server.process.kill(), dead.set()))
        scoring = asyncio.create_task(score(_config(listen, folder, out, batch=2)))
        await dead.wait()
        await asyncio.to_thread(server.process.wait)
        assert not scoring.done()
        await asyncio.to_thread(start_server, "--max-batch", "2", model=model, listen=listen)
        return await scoring

    assert run_async(scenario()) == 0
    assert _require_complete(out, model, folder)["runs"][0]["retries"]["UNAVAILABLE"] >= 1


def test_score__a_server_that_comes_back_with_another_model_gets_no_image(
    start_server, make_model, image_folder, run_async, tmp_path, free_port, capsys, at_image
):
    listen = f"127.0.0.1:{free_port}"
    server = start_server("--max-batch", "2", model=make_model("slow"), listen=listen)
    folder, out = image_folder(16), tmp_path / "s.parquet"

    async def scenario():
        dead = asyncio.Event()
        at_image(4, lambda: (server.process.kill(), dead.set()))
        scoring = asyncio.create_task(score(_config(listen, folder, out, batch=2)))
        await dead.wait()
        await asyncio.to_thread(server.process.wait)
        changed = await asyncio.to_thread(start_server, model=make_model("slow", seed=1), listen=listen)
        return await scoring, changed

    code, changed = run_async(scenario())
    assert code == 1
    assert "the model changed" in capsys.readouterr().err
    assert not out.exists()
    _, _, errors = changed.finish(signal.SIGTERM)
    assert int(re.search(r"stopped: (\d+) requests accepted", errors)[1]) == 0


def test_score__a_full_server_is_waited_for(start_server, make_model, image_folder, run_async, tmp_path):
    """The server takes 4 images at once and the client sends 8: refused, pushed back, and in the end all scored."""
    model = make_model("slow")
    limits = ("--limits.inflight-images", "4", "--limits.request-images", "2", "--limits.pushback-ms", "50")
    server = start_server("--max-batch", "2", *limits, model=model)
    folder, out = image_folder(24), tmp_path / "s.parquet"
    assert run_async(score(_config(server.address, folder, out))) == 0
    manifest = _require_complete(out, model, folder)
    assert manifest["runs"][0]["retries"]["RESOURCE_EXHAUSTED"] >= 1


def test_score__pixels_give_the_same_file_bit_for_bit(start_server, image_folder, run_async, tmp_path):
    folder = image_folder(30)
    (folder / "cut.jpg").write_bytes((folder / "img_0001.jpg").read_bytes()[:200])
    (folder / "text.jpg").write_text("this is not a picture")
    address = start_server().address
    for send in ("file", "pixels"):
        out = tmp_path / f"{send}.parquet"
        assert run_async(score(_config(address, folder, out, batch=7, send=send))) == 0
    files, pixels = (read_scores(tmp_path / f"{send}.parquet") for send in ("file", "pixels"))
    assert files.image_ids == pixels.image_ids
    assert len(files) == 30
    assert files.logit.tobytes() == pixels.logit.tobytes()
    assert files.score.tobytes() == pixels.score.tobytes()
    assert files.failed == pixels.failed
    assert set(pixels.failed) == {"cut", "text"}
    assert files.metadata == pixels.metadata
    assert "resize" in json.loads(manifest_path(tmp_path / "pixels.parquet").read_text())["pixels"]


def test_score__a_file_that_goes_away_is_a_failure(start_server, image_folder, run_async, tmp_path):
    folder, out = image_folder(3), tmp_path / "s.parquet"
    (tmp_path / "gone.jpg").write_bytes((folder / "img_0000.jpg").read_bytes())
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder / 'img_0000.jpg'}\ngone.jpg\n")
    server = start_server()

    async def scenario():
        scoring = asyncio.create_task(score(_config(server.address, listed, out)))
        await asyncio.sleep(0)  # listed by now; it waits for the server
        (tmp_path / "gone.jpg").unlink()
        return await scoring

    assert run_async(scenario()) == 0
    assert read_scores(out).failed == {"gone": "cannot be read: No such file or directory"}


def test_score__two_files_with_one_id_are_refused(start_server, image_folder, tmp_path, capsys):
    folder, out = image_folder(2), tmp_path / "s.parquet"
    (folder / "deeper").mkdir()
    (folder / "deeper" / "img_0001.png").write_bytes(b"x")
    with pytest.raises(InputError, match="share the id 'img_0001'; each file's stem must be unique"):
        main(["score", "--images", str(folder), "--out", str(out)])
    assert not parts_folder(out).exists()
