"""The judged model beside another: a cheaper one beside the float32 model that it was made from.

What a cheaper model's gate saw at the export comes with its score file. With the scores of the float32 model too
(`--also`), both are compared on the judged images, with paired intervals.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from data.model_file import Gate
from data.scores import Scores
from eval.comparison import Comparison, comparison_json, verdict
from eval.table import percent

Row = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Beside:
    """Two models side by side.

    Attributes:
        a: what the judged model is called: its precision where it is a cheaper one, else its name.
        b: what the other is called.
        gate: what the gate saw; None where the judged model is no cheaper one.
        compared: both on the judged images; None where only the judged model's scores are given.
    """

    a: str
    b: str
    gate: Gate | None
    compared: Comparison | None

    @property
    def title(self) -> str:
        """Of a section or a table."""
        return f"{self.a} beside {self.b}"

    def rows(self) -> list[Row]:
        """(what, of A, of B, A - B or what else is to say of both) as text."""
        rows: list[Row] = []
        if self.compared:
            for figure in self.compared.overall:
                gap = ""
                if not math.isnan(figure.low):
                    gap = f"{_points(figure.difference)} ({_points(figure.low)} to {_points(figure.high)})"
                rows.append((f"{figure.name}, judged images", percent(figure.a), percent(figure.b), gap))
        if self.gate:
            gate = self.gate
            rows += [
                (
                    f"mAP (voc2010), {gate.images:,} images of the selection part",
                    percent(gate.map),
                    percent(gate.map_float32),
                    f"{_points(-gate.fall)} (at least {_points(-gate.limit)})",
                ),
                (
                    f"the same over its {gate.frequent} frequent classes",
                    percent(gate.frequent_map),
                    percent(gate.frequent_map_float32),
                    f"{_points(gate.frequent_map - gate.frequent_map_float32)} (at least {_points(-gate.limit)})",
                ),
                (
                    "images/s, at the export",
                    f"{gate.images_per_second:.0f}",
                    f"{gate.images_per_second_float32:.0f}",
                    f"{gate.images_per_second / gate.images_per_second_float32:.2f} times",
                ),
                (
                    "size, MB",
                    f"{gate.bytes / 1e6:.1f}",
                    f"{gate.bytes_float32 / 1e6:.1f}",
                    f"{gate.bytes / gate.bytes_float32:.2f} times",
                ),
                ("layers in float32", f"{gate.layers_left}", f"{gate.layers}", ""),
            ]
        return rows

    def sentence(self) -> str:
        """What may be said of the two on the judged images; "" where only one was scored."""
        if not self.compared:
            return ""
        return f"A = {self.a}, B = {self.b}: {verdict(self.compared)}"

    def to_json(self) -> dict[str, Any]:
        """`gate` and `also`, each where it is known."""
        content: dict[str, Any] = {}
        if self.gate:
            content["gate"] = {**asdict(self.gate), "fall": self.gate.fall}
        if self.compared:
            content["also"] = {"a": self.a, "b": self.b, **comparison_json(self.compared)}
        return content


def beside(
    scores: Scores, source: str, also: tuple[Scores, str] | None, compared: Comparison | None
) -> Beside | None:
    """What is to be shown of two models; None where the scores are of one that is no cheaper copy of another.

    Args:
        scores, source: the judged ones, and the name of their file.
        also: the other model's, and the name of their file.
        compared: of both.

    Raises:
        InputError: the score file's gate is not one of this version.
    """
    text = scores.metadata.get("gate", "")
    gate = Gate.from_json(text, source) if text else None
    if not gate and not also:
        return None
    own = gate.precision if gate else model_title(scores.metadata, source)
    other = model_title(also[0].metadata, also[1]) if also else "float32"
    if gate and also and also[0].metadata.get("model_hash") == gate.float32_hash:
        other = "float32"
    return Beside(own, other, gate, compared)


def foreign_note(shown: Beside | None) -> list[str]:
    """A warning where a cheaper model is compared with another than the one that it was made from."""
    if not shown or not shown.gate or not shown.compared or shown.b == "float32":
        return []
    return [
        f"the model of --also ({shown.b}) is not known to be the float32 file that this one was made from: its SHA-256 "
        f"is not {shown.gate.float32_hash[:16]}...; in the table of both, the rows on the selection part and below are "
        "of that file"
    ]


def print_beside(shown: Beside, console: Console) -> None:
    """Print both models, one line a fact."""
    lines = [
        f"both: {name}: {shown.a} {a}, {shown.b} {b}" + (f", {gap}" if gap else "")
        for name, a, b, gap in shown.rows()
    ]
    for line in [*lines, shown.sentence()]:
        if line:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def model_title(metadata: Mapping[str, str], source: str) -> str:
    """The model's name and version as the score file tells them, else the file's own name."""
    name, version = metadata.get("model_name", ""), metadata.get("model_version", "")
    return (name + (f" version {version}" if version not in ("", "file") else "")) or source


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"
