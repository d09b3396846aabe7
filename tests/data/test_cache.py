"""The decoded cache: right pixels in the right order, built once, rebuilt when stale, nothing half-built."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import cache as cache_module
from data.cache import open_cache
from data.errors import InputError
from data.image import load
from data.labels import LabelSet

COUNT = 6


def make_set(folder: Path, count: int = COUNT, side: int = 40) -> LabelSet:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        pixels = rng.integers(0, 256, (side, side + index, 3), dtype=np.uint8)
        paths.append(folder / f"photo{index:03d}.jpg")
        Image.fromarray(pixels).save(paths[-1])
    ids = tuple(path.stem for path in paths)
    flat = np.zeros((count, 1), dtype=np.uint8)
    return LabelSet("photos", ("cat",), ids, flat, flat + 1, paths=tuple(paths))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_open_cache__pixels_in_the_order_of_the_labels(tmp_path: Path) -> None:
    labels = make_set(tmp_path / "photos").subset([4, 0, 2], "three")
    cache = open_cache(labels, 24, tmp_path / "cache")
    assert cache.pixels.shape == (3, 24, 24, 3)
    assert cache.pixels.dtype == np.uint8
    for row, path in zip(cache.pixels, labels.paths, strict=True):
        np.testing.assert_array_equal(row, load(path.read_bytes(), 24))
    with pytest.raises(ValueError, match="read-only"):
        cache.pixels[0] = 0


def test_open_cache__same_pixels_from_one_thread_and_from_four(tmp_path: Path) -> None:
    labels = make_set(tmp_path / "photos")
    one = open_cache(labels, 24, tmp_path / "one", workers=1)
    four = open_cache(labels, 24, tmp_path / "four", workers=4)
    assert one.built
    assert four.built
    np.testing.assert_array_equal(one.pixels, four.pixels)


def test_open_cache__reused_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = make_set(tmp_path / "photos")
    first = open_cache(labels, 24, tmp_path / "cache")
    second = open_cache(labels, 24, tmp_path / "cache")
    assert (first.built, second.built) == (True, False)
    assert first.path == second.path
    assert second.megabytes == pytest.approx(COUNT * 24 * 24 * 3 / 1e6)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"cache: 6 images at 24 px, 0\.0 MB, built in \d+\.\d s \(.*\)", lines[0])
    assert "reused" in lines[1]


def test_open_cache__rebuilt_when_an_image_changes(tmp_path: Path) -> None:
    labels = make_set(tmp_path / "photos")
    open_cache(labels, 24, tmp_path / "cache")
    Image.new("RGB", (30, 30), (200, 10, 10)).save(labels.paths[1])
    cache = open_cache(labels, 24, tmp_path / "cache")
    assert cache.built
    np.testing.assert_array_equal(cache.pixels[1], load(labels.paths[1].read_bytes(), 24))


def test_open_cache__rebuilt_for_touch_size_order_and_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, folder = make_set(tmp_path / "photos"), tmp_path / "cache"
    paths = {open_cache(labels, 24, folder).path, open_cache(labels, 25, folder).path}
    paths.add(open_cache(labels.subset([1, 0, 2, 3, 4, 5], "turned"), 24, folder).path)
    os.utime(labels.paths[0], ns=(1, 1))
    paths.add(open_cache(labels, 24, folder).path)
    monkeypatch.setattr(cache_module, "fingerprint", lambda size: "another library")
    paths.add(open_cache(labels, 24, folder).path)
    assert len(paths) == 5


def test_open_cache__bad_images_all_named_up_to_ten_and_nothing_left(tmp_path: Path) -> None:
    labels = make_set(tmp_path / "photos", count=14)
    for path in labels.paths[:11]:
        path.write_bytes(path.read_bytes()[:-200])
    labels.paths[11].write_text("not a picture")
    with pytest.raises(InputError) as caught:
        open_cache(labels, 24, tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith("12 of the 14 images of 'photos' cannot be read: ")
    assert all(str(path) in message for path in labels.paths[:10])
    assert "damaged JPEG" in message
    assert message.endswith("; and 2 more")
    assert [name for name in names(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_open_cache__missing_image_named(tmp_path: Path) -> None:
    labels = make_set(tmp_path / "photos")
    labels.paths[3].unlink()
    with pytest.raises(InputError, match=r"1 of the 6 images .*photo003\.jpg \(No such file"):
        open_cache(labels, 24, tmp_path / "cache")


def test_open_cache__labels_without_images(tmp_path: Path) -> None:
    flat = np.zeros((1, 1), dtype=np.uint8)
    with pytest.raises(InputError, match="labels only"):
        open_cache(LabelSet("bare", ("cat",), ("a",), flat, flat), 24, tmp_path)


def test_open_cache__full_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = make_set(tmp_path / "photos")
    usage = cache_module.shutil._ntuple_diskusage(100, 100, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"needs 0 MB in .* has 0 MB free"):
        open_cache(labels, 24, tmp_path / "cache")
    assert [name for name in names(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_open_cache__disk_that_fills_up_meanwhile(tmp_path: Path) -> None:
    """A file size limit of the process stands for the full disk: the blocks are claimed before decoding."""
    make_set(tmp_path / "photos")
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1]); from test_cache import *;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "root = Path(sys.argv[2]); labels = make_set(root / 'photos');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "open_cache(labels, 64, root / 'cache')"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "InputError: cannot write the cache" in done.stderr
    assert "File too large" in done.stderr


RACE = """
import sys; sys.path.insert(0, sys.argv[1])
from test_cache import *
cache = open_cache(make_set_at(Path(sys.argv[2])), 200, Path(sys.argv[2]) / "cache", workers=1)
print(cache.built, int(cache.pixels.sum(dtype="int64")))
"""


def make_set_at(root: Path) -> LabelSet:
    paths = tuple(sorted((root / "photos").iterdir()))
    flat = np.zeros((len(paths), 1), dtype=np.uint8)
    return LabelSet("photos", ("cat",), tuple(p.stem for p in paths), flat, flat + 1, paths=paths)


def test_open_cache__two_processes_build_once(tmp_path: Path) -> None:
    make_set(tmp_path / "photos", count=60, side=300)
    command = [sys.executable, "-c", RACE, str(Path(__file__).parent), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0].split() for process in both]
    assert sorted(answer[0] for answer in answers) == ["False", "True"]
    assert answers[0][1] == answers[1][1] != "0"
    assert len([name for name in names(tmp_path / "cache") if name.endswith(".u8")]) == 1


def test_open_cache__interrupted_leaves_no_cache(tmp_path: Path) -> None:
    make_set(tmp_path / "photos", count=100, side=900)
    command = [sys.executable, "-c", RACE, str(Path(__file__).parent), str(tmp_path)]
    # Where the tests run in a shell's background, SIGINT is ignored, and a child would inherit that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "cache"
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode not in (0, None)
    assert [name for name in names(folder) if not name.endswith(".lock")] == []
