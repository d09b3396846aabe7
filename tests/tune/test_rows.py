"""The table of trials as a file."""

import math
from pathlib import Path

from tune.rows import TrialRow, best_first, read_table, write_table


def test_table__gives_back_what_was_written(tmp_path: Path) -> None:
    rows = [
        TrialRow(
            "a",
            "completed",
            {"backbone": "x", "loss": "asl", "lr": 1e-3, "loss.gamma_neg": 2.5},
            4,
            0.5,
            0.4,
            0.6,
        ),
        TrialRow(
            "b",
            "failed",
            {"backbone": "y", "loss": "bce", "lr": 0.25},
            restarts=2,
            reason='it said "no", twice',
        ),
        TrialRow(
            "c", "pruned", {"backbone": "x", "loss": "bce", "lr": 2e-3, "size": 64}, node="n", run_id="r"
        ),
    ]
    write_table(tmp_path / "trials.csv", rows)
    found = read_table(tmp_path / "trials.csv")
    assert [str(row) for row in found] == [str(row) for row in rows]


def test_best_first__trials_without_an_epoch_come_last() -> None:
    rows = [
        TrialRow("a", "failed"),
        TrialRow("b", "pruned", best_map=0.2),
        TrialRow("c", "completed", best_map=0.9),
    ]
    assert [row.trial_id for row in best_first(rows)] == ["c", "b", "a"]
    assert math.isnan(best_first(rows)[-1].best_map)
