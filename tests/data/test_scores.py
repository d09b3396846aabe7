import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import InputError
from data.scores import (
    Scores,
    ScoreWriter,
    failures_path,
    image_id_of,
    read_matrix_csv,
    read_scores,
    write_scores,
)


def scores(failed: dict[str, str] | None = None) -> Scores:
    logit = np.array([[0.5, -2.0], [1e-7, 30.0]], dtype=np.float32)
    return Scores(
        classes=("cat", "diningtable"),
        image_ids=("2008_000002", "b"),
        logit=logit,
        score=(1 / (1 + np.exp(-logit))).astype(np.float32),
        metadata={"model_name": "resnet18 ä", "images_sent": "3"},
        failed=failed or {},
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


def test_write_scores__comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.parquet"
    write_scores(path, scores({"x": "truncated, at byte 12", "y": "empty"}))
    back = read_scores(path)
    assert back.classes == ("cat", "diningtable")
    assert back.image_ids == ("2008_000002", "b")
    assert back.logit.dtype == back.score.dtype == np.float32
    assert back.logit.tobytes() == scores().logit.tobytes()
    assert back.score.tobytes() == scores().score.tobytes()
    assert back.metadata == {"model_name": "resnet18 ä", "images_sent": "3"}
    assert back.failed == {"x": "truncated, at byte 12", "y": "empty"}


def test_write_scores__files_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, scores({"x": "empty"}))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.failed.csv", "scores.parquet"]
    assert pq.read_schema(path).names == [
        "image_id",
        "logit/cat",
        "logit/diningtable",
        "score/cat",
        "score/diningtable",
    ]
    assert failures_path(path).read_text().splitlines() == ["image_id,reason", "x,empty"]
    write_scores(path, scores())
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]  # no failure of the run before
    assert read_scores(path).failed == {}


def test_write_scores__no_image(tmp_path: Path) -> None:
    none = np.zeros((0, 1), dtype=np.float32)
    write_scores(tmp_path / "s.parquet", Scores(("cat",), (), none, none, failed={"a": "empty"}))
    assert len(read_scores(tmp_path / "s.parquet")) == 0


def test_score_writer__pieces_give_the_same_as_all_at_once(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.parquet", tmp_path / "pieces.parquet"
    write_scores(whole, scores({"x": "empty"}))
    content = scores()
    with ScoreWriter(pieces, content.classes, content.metadata) as writer:
        for row in range(2):
            piece = slice(row, row + 1)
            writer.write(content.image_ids[piece], content.logit[piece], content.score[piece])
        writer.fail("x", "empty")
        assert not pieces.exists()
        writer.publish()
    assert pq.read_metadata(pieces).num_row_groups == 2
    one, other = read_scores(whole), read_scores(pieces)
    assert pq.read_schema(whole).equals(pq.read_schema(pieces), check_metadata=True)
    assert one.image_ids == other.image_ids
    assert one.logit.tobytes() == other.logit.tobytes()
    assert one.score.tobytes() == other.score.tobytes()
    assert one.failed == other.failed
    assert failures_path(whole).read_bytes() == failures_path(pieces).read_bytes()


@pytest.mark.parametrize(("scored", "failed"), [("1", "1"), ("2", "0")])
def test_score_writer__nothing_appears_where_the_account_does_not_close(
    tmp_path: Path, scored: str, failed: str
) -> None:
    content = scores()
    metadata = {"images_scored": scored, "images_failed": failed}
    with ScoreWriter(tmp_path / "s.parquet", content.classes, metadata) as writer:
        writer.write(content.image_ids, content.logit, content.score)
        writer.fail("x", "empty")
        with pytest.raises(RuntimeError, match="the account does not close: images_"):
            writer.publish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores__not_finite(bad: float) -> None:
    logit = scores().logit.copy()
    logit[1, 0] = bad
    with pytest.raises(
        InputError, match=r"logit must be finite, got .* for image 'b', class 'cat' \(1 such\)"
    ):
        Scores(("cat", "dog"), ("a", "b"), logit, scores().score)


def test_scores__wrong_shape_and_repeated_names() -> None:
    values = np.zeros((2, 1), dtype=np.float32)
    with pytest.raises(InputError, match=r"logit must be \[images, classes\] = \[1, 1\], got \[2, 1\]"):
        Scores(("cat",), ("a",), values, values)
    with pytest.raises(InputError, match="image id 'a' stands twice"):
        Scores(("cat",), ("a", "a"), values, values)


def test_read_scores__not_a_score_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no score file at"):
        read_scores(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="no score file at"):
        read_scores(tmp_path)
    with pytest.raises(InputError, match="is not a Parquet score file"):
        read_scores(write(tmp_path / "text.parquet", "image,cat\n"))
    pq.write_table(pa.table({"image_id": ["a"], "cat": [1.0]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="it has no column 'logit/<class>'"):
        read_scores(tmp_path / "other.parquet")
    pq.write_table(pa.table({"image_id": ["a"], "logit/cat": [1.0]}), tmp_path / "half.parquet")
    with pytest.raises(InputError, match="column 'score/cat' is missing"):
        read_scores(tmp_path / "half.parquet")


def test_read_scores__empty_value_in_parquet(tmp_path: Path) -> None:
    columns = {"image_id": ["a"], "logit/cat": pa.array([None], pa.float32()), "score/cat": [0.5]}
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(InputError, match="logit must be finite, got nan for image 'a', class 'cat'"):
        read_scores(tmp_path / "s.parquet")


def test_read_scores__csv_of_probabilities(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "image,cat,dog\np\\a.jpg,0.5,0.25\nq/b.jpg,1,0\n")
    read = read_scores(path)
    assert read.image_ids == ("a", "b")
    assert read.score.tolist() == [[0.5, 0.25], [1.0, 0.0]]
    assert read.logit[0] == pytest.approx([0.0, math.log(1 / 3)])
    assert read.logit[1].tolist() == [40.0, -800.0]
    assert read.metadata["csv_values"] == "probability"


def test_read_scores__csv_probabilities_near_the_ends_keep_their_order(tmp_path: Path) -> None:
    values = ["0", "1e-320", "1e-30", "0.5", "0.9999999999999999", "1"]
    rows = "".join(f"i{i},{value}\n" for i, value in enumerate(values))
    logit = read_scores(write(tmp_path / "s.csv", "image,cat\n" + rows)).logit[:, 0]
    assert np.all(np.diff(logit) > 0)


def test_read_scores__csv_of_logits(tmp_path: Path) -> None:
    read = read_scores(write(tmp_path / "s.CSV", "image,cat\na,-1000\nb,0\nc,2.5\n"))
    assert read.logit[:, 0].tolist() == [-1000.0, 0.0, 2.5]
    assert read.score[:, 0] == pytest.approx([0.0, 0.5, 1 / (1 + math.exp(-2.5))])
    assert read.metadata["csv_values"] == "logit"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,cat\na,x\n", r"s\.csv:2: a cell is not a number: .*'x'"),
        ("image,cat\na,1,2\n", r"s\.csv:2: 3 cells where the header has 2"),
        ("image,cat\na,\n", "logit must be finite, got nan for image 'a', class 'cat'"),
        ("image,cat\na,3\nb,inf\n", "logit must be finite, got inf for image 'b', class 'cat'"),
        ("image,cat\nx/a.jpg,1\ny/a.png,2\n", "image id 'a' stands twice"),
        ("image,cat\n", r"s\.csv has a header but no row"),
        ("", r"s\.csv:1: the header must be"),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_read_scores__bad_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_scores(write(tmp_path / "s.csv", text))


def test_read_scores__csv_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"image,cat\n\xff,1\n")
    with pytest.raises(InputError, match=r"s\.csv is not a CSV text file"):
        read_scores(tmp_path / "s.csv")


def test_read_matrix_csv__empty_cells_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "\ufeffimage, cat ,dog\r\na.jpg, ,2\r\n\r\nb.jpg,3,4\r\n")
    columns, ids, values = read_matrix_csv(path, empty=-9.0)
    assert (columns, ids) == (("cat", "dog"), ("a", "b"))
    assert values.tolist() == [[-9.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "name",
    [
        "2008_000002",
        "2008_000002.jpg",
        "a/b/2008_000002.jpg",
        "a\\b\\2008_000002.jpg",
        "../data\\VOC2012\\JPEGImages\\2008_000002.jpg",
        "C:\\x\\2008_000002.JPG",
    ],
)
def test_image_id_of__any_style(name: str) -> None:
    assert image_id_of(name) == "2008_000002"
