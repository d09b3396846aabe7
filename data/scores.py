"""The score file: what a model said of every image, in the form that `eval` judges.

Parquet with `image_id` (string), then float32 `logit/<class>` and `score/<class>` for each class in
order, and string metadata (`METADATA_KEYS`). A failed image is never a row: it is listed with its
reason in the companion file `<name>.failed.csv`. Anyone's plain CSV (`image,<class>...`) is read too.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import InputError
from data.labels import require_unique

METADATA_KEYS: tuple[str, ...] = (
    "model_name",
    "model_version",
    "model_hash",
    "preprocessing",
    "server_version",
    "data_fingerprint",
    "images_sent",
    "images_scored",
    "images_failed",
    "thresholds",
    "gate",
)
_PREFIX = "tailacc."
# The logit given to a probability of exactly 1 or 0 in a plain CSV: beyond every float64 below 1 (36.7)
# and every positive float64 (-745), so that the order stays what the file says.
_LOGIT_OF_ONE, _LOGIT_OF_ZERO = 40.0, -800.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N images over C classes.

    Attributes:
        classes: C names in order.
        image_ids: N unique ids.
        logit: float32[N, C], finite; ranking is on these.
        score: float32[N, C] in [0, 1], the calibrated probability.
        metadata: see `METADATA_KEYS`; whatever the writer knew. `thresholds` is a JSON list of C scores, above
            which the model shows a label; `gate`, where the model is a cheaper one, a
            `data.model_file.Gate` as JSON.
        failed: image id -> reason, for the images that have no row.
    """

    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    logit: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    metadata: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.image_ids), len(self.classes))
        for name, array in (("logit", self.logit), ("score", self.score)):
            if array.shape != shape:
                raise InputError(f"{name} must be [images, classes] = {list(shape)}, got {list(array.shape)}")
            bad = np.argwhere(~np.isfinite(array))
            if len(bad):
                row, column = bad[0]
                where = f"image '{self.image_ids[row]}', class '{self.classes[column]}'"
                raise InputError(
                    f"{name} must be finite, got {array[row, column]} for {where} ({len(bad)} such)"
                )
        require_unique(self.image_ids, "image id")
        require_unique(self.classes, "class name")

    def __len__(self) -> int:
        return len(self.image_ids)


def failures_path(path: Path) -> Path:
    """Where the failed images of the score file `path` are listed."""
    return path.with_name(path.stem + ".failed.csv")


class ScoreWriter:
    """Writes a score file piece by piece, so that its size is no matter. Use as a context manager.

    Nothing is at `path` until `publish`; without it, what was written is dropped.

    Args:
        path: the score file.
        classes: C names in order.
        metadata: see `METADATA_KEYS`. `images_scored` and `images_failed`, where given, must be what is written.
    """

    def __init__(self, path: Path, classes: Sequence[str], metadata: Mapping[str, str]) -> None:
        require_unique(classes, "class name")
        self.path = path
        self.scored = self.failed = 0
        self._classes, self._metadata = tuple(classes), metadata
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(path.name + ".part")
        companion = failures_path(path)
        self._failed_partial = companion.with_name(companion.name + ".part")
        names = (f"{kind}/{name}" for kind in ("logit", "score") for name in self._classes)
        fields = [("image_id", pa.string()), *((name, pa.float32()) for name in names)]
        self._schema = pa.schema(fields, {_PREFIX + key: value for key, value in metadata.items()})
        self._stack = ExitStack()
        self._rows = self._stack.enter_context(pq.ParquetWriter(self._partial, self._schema))
        stream = self._stack.enter_context(self._failed_partial.open("w", newline="", encoding="utf-8"))
        self._reasons = csv.writer(stream)
        self._reasons.writerow(["image_id", "reason"])

    def __enter__(self) -> "ScoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._partial.unlink(missing_ok=True)
        self._failed_partial.unlink(missing_ok=True)

    def write(
        self, image_ids: Sequence[str], logit: npt.NDArray[np.float32], score: npt.NDArray[np.float32]
    ) -> None:
        """Append one row group: N ids that were not there before, logit[N, C] and score[N, C], all finite."""
        columns = [_strings(image_ids)]
        for array in (logit, score):
            columns += [_floats(column) for column in array.T]
        self._rows.write_table(pa.Table.from_arrays(columns, schema=self._schema), max(1, len(image_ids)))
        self.scored += len(image_ids)

    def fail(self, image_id: str, reason: str) -> None:
        """List one failed image."""
        self._reasons.writerow([image_id, reason])
        self.failed += 1

    def publish(self) -> None:
        """Put the companion file, where images failed, and then the score file in place, by atomic renames.

        Raises:
            RuntimeError: the counts in the metadata are others than those of what was written.
        """
        self._stack.close()
        counts = {"images_scored": pq.read_metadata(self._partial).num_rows, "images_failed": self.failed}
        for key, found in counts.items():
            if self._metadata.get(key, str(found)) != str(found):
                raise RuntimeError(f"the account does not close: {key} is {self._metadata[key]}, got {found}")
        companion = failures_path(self.path)
        if self.failed:
            os.replace(self._failed_partial, companion)
        else:
            companion.unlink(missing_ok=True)
        os.replace(self._partial, self.path)


# From buffers, since `pa.array` imports pandas where that is installed: 1 to 6 s and 53 MiB.
def _strings(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers).cast(pa.string())


def _floats(numbers: npt.NDArray[np.float32]) -> pa.Array:
    content = np.ascontiguousarray(numbers, np.float32)
    return pa.Array.from_buffers(pa.float32(), len(content), [None, pa.py_buffer(content)])


def write_scores(path: Path, scores: Scores) -> None:
    """Write the Parquet file, and the companion file where images failed, each by an atomic rename."""
    with ScoreWriter(path, scores.classes, scores.metadata) as writer:
        writer.write(scores.image_ids, scores.logit, scores.score)
        for image_id, reason in sorted(scores.failed.items()):
            writer.fail(image_id, reason)
        writer.publish()


def read_scores(path: Path) -> Scores:
    """Read a score file: our Parquet, or a plain CSV (see `read_score_csv`)."""
    if not path.is_file():
        raise InputError(f"no score file at {path}")
    if path.suffix.lower() == ".csv":
        return read_score_csv(path)
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a Parquet score file: {error}") from error
    names = table.column_names
    classes = tuple(name.removeprefix("logit/") for name in names if name.startswith("logit/"))
    wanted = ["image_id", *(f"logit/{c}" for c in classes), *(f"score/{c}" for c in classes)]
    missing = [name for name in wanted if name not in names]
    if not classes or missing:
        what = f"column '{missing[0]}' is missing" if missing else "it has no column 'logit/<class>'"
        raise InputError(f"{path} is not a score file: {what}")
    companion = failures_path(path)
    failed: dict[str, str] = {}
    if companion.is_file():
        with companion.open(newline="") as stream:
            failed = {row["image_id"]: row["reason"] for row in csv.DictReader(stream)}

    def matrix(kind: str) -> npt.NDArray[np.float32]:
        out = np.empty((table.num_rows, len(classes)), dtype=np.float32)
        for column, name in enumerate(classes):
            out[:, column] = table.column(f"{kind}/{name}").to_numpy()
        return out

    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return Scores(
        classes=classes,
        image_ids=tuple(table.column("image_id").to_pylist()),
        logit=matrix("logit"),
        score=matrix("score"),
        metadata={k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)},
        failed=failed,
    )


def image_id_of(name: str) -> str:
    """The image id of a path in any style: `a\\b/2008_000002.jpg` -> `2008_000002`."""
    return PureWindowsPath(name).stem


def read_score_csv(path: Path) -> Scores:
    """Read a plain CSV `image,<class>...` of anyone's scores.

    Where every value lies in [0, 1] they are taken as probabilities p and the logit is log(p / (1 - p));
    otherwise they are taken as logits and the score is their sigmoid.
    """
    header, names, values = read_matrix_csv(path, empty=np.nan)
    if values.size and np.nanmin(values) >= 0 and np.nanmax(values) <= 1:
        with np.errstate(divide="ignore"):
            logit = np.log(values) - np.log1p(-values)
        logit = np.clip(logit, _LOGIT_OF_ZERO, _LOGIT_OF_ONE)
        score, kind = values, "probability"
    else:
        logit, kind = values, "logit"
        score = 0.5 * (1 + np.tanh(0.5 * values))  # the sigmoid, without overflow
    return Scores(
        classes=header,
        image_ids=names,
        logit=logit.astype(np.float32),
        score=score.astype(np.float32),
        metadata={"model_name": path.name, "csv_values": kind},
    )


def read_matrix_csv(
    path: Path, empty: float
) -> tuple[tuple[str, ...], tuple[str, ...], npt.NDArray[np.float64]]:
    """Read `image,<column>...` with one number a cell.

    Returns the column names, the image ids (file stems) and float64[N, C], with `empty` for an empty cell.
    """
    columns, lines = read_csv_cells(path)
    rows: list[list[float]] = []
    for line, row in lines:
        try:
            rows.append([float(cell) if cell else empty for cell in row[1:]])
        except ValueError as error:
            raise InputError(f"{path}:{line}: a cell is not a number: {error}") from error
    ids = tuple(image_id_of(row[0]) for _, row in lines)
    return columns, ids, np.array(rows, dtype=np.float64)


def read_csv_cells(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Read `image,<column>...` as text: the column names, and (line number, stripped cells) of each row.

    Every row has one cell more than there are column names; blank lines are left out.
    """
    if not path.is_file():
        raise InputError(f"no CSV file at {path}")
    rows: list[tuple[int, list[str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            if len(header) < 2:
                raise InputError(
                    f"{path}:1: the header must be 'image,<class>,...', got '{','.join(header)}'"
                )
            for row in reader:
                if row and len(row) != len(header):
                    raise InputError(
                        f"{path}:{reader.line_num}: {len(row)} cells where the header has {len(header)}"
                    )
                if row:
                    rows.append((reader.line_num, [cell.strip() for cell in row]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV text file: {error}") from error
    if not rows:
        raise InputError(f"{path} has a header but no row")
    return tuple(header[1:]), rows
