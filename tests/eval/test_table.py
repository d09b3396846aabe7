import io
import math

import numpy as np
from rich.console import Console

from eval.joining import Joined
from eval.judge import judge
from eval.table import percent, print_table, span


def test_percent_and_span__missing_is_said() -> None:
    assert percent(0.85312) == "85.31"
    assert percent(math.nan) == "n/a"
    assert span(0.8456, 0.8612) == "84.6 to 86.1"
    assert span(math.nan, math.nan) == "n/a"


def test_print_table__figures_are_whole_on_a_narrow_terminal() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=(40, 2)).astype(np.float32)
    target = rng.integers(0, 2, (40, 2)).astype(np.uint8)
    ids = tuple(f"{i:02d}" for i in range(40))
    name = "a class with a rather long name"
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    joined = Joined("toy", (name, "n"), ids, logit, score, target, np.ones_like(target), (), (), {}, 40, "f")
    judgement = judge(joined, replicates=10)
    stream = io.StringIO()
    print_table(judgement, Console(file=stream, width=40))
    line = next(line for line in stream.getvalue().splitlines() if line.strip().startswith(name))
    assert percent(judgement.ap["voc2010"][0]) in line
    assert percent(judgement.always_no[0]) in line
    assert "…" not in stream.getvalue()
