import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.cli import run
from data.labels import VOC_CLASSES
from data.scores import read_scores
from eval.submit import main
from train.tracking import client

IDS = [f"2008_{i:06d}" for i in range(12)]


@pytest.fixture
def test_kit(tmp_path: Path) -> Path:
    """A devkit that knows the ids of the test split and no label, as VOC's own does."""
    folder = tmp_path / "kit" / "VOC2012" / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (folder / "test.txt").write_text("\n".join(reversed(IDS)) + "\n")
    return tmp_path / "kit"


def submit(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    code = run(main, [str(option) for option in options])
    found = capsys.readouterr()
    return code, found.out, found.err


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive}  # type: ignore[union-attr]


def test_main__the_servers_files(
    test_kit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "r.tar.gz"
    code, text, _ = submit(capsys, "--scores", score_csv, "--data", test_kit, "--out", out)
    assert code == 0
    assert "two submissions a week" in text
    assert "0.85" in text
    found = members(out)
    assert list(found) == [f"results/VOC2012/Main/comp2_cls_test_{name}.txt" for name in VOC_CLASSES]
    scores = read_scores(score_csv)
    for c, content in enumerate(found.values()):
        lines = [line.split(" ") for line in content.splitlines()]
        assert [cells[0] for cells in lines] == IDS[::-1]
        written = np.array([float(cells[1]) for cells in lines], np.float32)
        rows = [scores.image_ids.index(image_id) for image_id in IDS[::-1]]
        np.testing.assert_array_equal(written, scores.logit[rows, c])  # not a digit is lost
    first = out.read_bytes()
    submit(capsys, "--scores", score_csv, "--data", test_kit, "--out", out)
    assert out.read_bytes() == first
    assert list(out.parent.iterdir()) == [out]
    assert submit(capsys, "--check", out, "--data", test_kit)[0] == 0


def changed(source: Path, out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of the archive with its members changed."""
    content = {name: text.encode() for name, text in members(source).items()}
    change(content)
    with tarfile.open(out, "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out


CAT = "results/VOC2012/Main/comp2_cls_test_cat.txt"
BAD: list[tuple[str, Callable[[dict[str, bytes]], None], str]] = [
    ("missing class", lambda m: m.pop(CAT) and None, "no file for 1 classes: cat"),  # type: ignore[func-returns-value]
    (
        "foreign file",
        lambda m: m.update({"results/readme.md": b""}),
        "'results/readme.md' has no place there",
    ),
    ("other year", lambda m: m.update({CAT.replace("2012", "2007"): m.pop(CAT)}), "is not of VOC2012 test"),
    ("other class", lambda m: m.update({CAT.replace("cat", "zebra"): b""}), "not of one of VOC's classes"),
    (
        "two competitions",
        lambda m: m.update({CAT.replace("comp2", "comp1"): m.pop(CAT)}),
        "mixes comp1 and comp2",
    ),
    ("class twice", lambda m: m.update({CAT.replace("comp2", "comp1"): m[CAT]}), "class 'cat' stands twice"),
    (
        "lost image",
        lambda m: m.update({CAT: m[CAT].split(b"\n", 1)[1]}),
        "1 images of the split are missing: 2008_000011",
    ),
    (
        "image twice",
        lambda m: m.update({CAT: m[CAT] + m[CAT].split(b"\n")[0] + b"\n"}),
        "cat.txt:13: image '2008_000011' stands twice",
    ),
    (
        "unknown image",
        lambda m: m.update({CAT: m[CAT].replace(b"2008_000003", b"2008_999999")}),
        "image '2008_999999' is not in the split",
    ),
    (
        "not finite",
        lambda m: m.update({CAT: b"2008_000011 nan\n"}),
        "cat.txt:1: a line must be '<image id> <finite confidence>', got '2008_000011 nan'",
    ),
    ("no number", lambda m: m.update({CAT: b"2008_000011 high\n"}), "finite confidence"),
    ("three cells", lambda m: m.update({CAT: b"2008_000011 1 2\n"}), "finite confidence"),
    ("two spaces", lambda m: m.update({CAT: b"2008_000011  1\n"}), "finite confidence"),
    ("no end", lambda m: m.update({CAT: m[CAT].rstrip(b"\n")}), "cat.txt:12: the last line has no end"),
    ("not ASCII", lambda m: m.update({CAT: "é".encode()}), "not plain ASCII"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_check__what_the_server_would_not_take(
    change: Callable[[dict[str, bytes]], None],
    message: str,
    test_kit: Path,
    score_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = tmp_path / "good.tar.gz"
    submit(capsys, "--scores", score_csv, "--data", test_kit, "--out", good)
    bad = changed(good, tmp_path / "bad.tar.gz", change)
    code, _, error = submit(capsys, "--check", bad, "--data", test_kit)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_main__bad_input_is_said_and_nothing_is_left(
    test_kit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, fewer = tmp_path / "short.csv", tmp_path / "fewer.csv"
    lines = score_csv.read_text().splitlines()
    short.write_text("\n".join(lines[:-1]))
    fewer.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
    out = tmp_path / "r.tar.gz"
    base = ("--data", test_kit, "--out", out, "--scores")
    for options, message in (
        ((*base, short), "1 of 12 images of VOC2012 test have no score: 2008_000011"),
        ((*base, fewer), "all 20 classes; no scores for tvmonitor"),
        ((*base, tmp_path / "none.parquet"), "no score file at"),
        ((*base, score_csv, "--split", "val"), "no split 'val' in"),
        (
            ("--data", test_kit, "--scores", score_csv, "--out", tmp_path / "r.zip"),
            "--out must end in .tar.gz",
        ),
        (("--data", test_kit, "--check", tmp_path / "broken.tar.gz"), "is not a .tar.gz archive"),
        (("--data", test_kit, "--check", tmp_path / "none.tar.gz"), "is not a .tar.gz archive"),
    ):
        code, _, error = submit(capsys, *options)
        assert code == 2, options
        assert message in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_main__comp1_takes_no_pretrained_weights(
    test_kit: Path, score_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "r.tar.gz", tmp_path / "config.json"
    base = ("--scores", score_csv, "--data", test_kit, "--out", out, "--comp", "comp1")
    code, _, error = submit(capsys, *base)
    assert code == 2
    assert "what this model started from is unknown (the score file names no model)" in error
    config.write_text(json.dumps({"model": {"weights": "imagenet"}}))
    for more in ((), ("--trained-from-scratch",)):  # what is known is not argued away
        code, _, error = submit(capsys, *base, "--config", config, *more)
        assert code == 2
        assert "this model started from 'imagenet'" in error
    config.write_text("{}")
    assert "has no model.weights" in submit(capsys, *base, "--config", config)[2]
    assert "can't be read" in submit(capsys, *base, "--config", tmp_path / "none.json")[2]
    assert not out.exists()
    config.write_text(json.dumps({"model": {"weights": "none"}}))
    for more in (("--config", str(config)), ("--trained-from-scratch",)):
        assert submit(capsys, *base, *more)[0] == 0
        assert next(iter(members(out))) == "results/VOC2012/Main/comp1_cls_test_aeroplane.txt"
        out.unlink()


def test_main__comp1_asks_the_mlflow_run_of_the_model(
    test_kit: Path,
    score_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    served_run: Callable[..., tuple[Path, str]],
) -> None:
    scores, run_id = served_run(score_csv)
    base = ("--scores", scores, "--data", test_kit, "--out", tmp_path / "r.tar.gz", "--comp", "comp1")
    assert "unknown (MLflow run" in submit(capsys, *base)[2]
    client().log_param(run_id, "model.weights", "imagenet")
    assert f"started from 'imagenet' (MLflow run {run_id})" in submit(capsys, *base)[2]
