"""The table of trials while they run: live on a terminal, a line for each epoch elsewhere."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tune.record import TrialRow


def build_table(rows: list[TrialRow], title: str) -> Table:
    """The trials as a table, best first."""
    table = Table(title=title, title_justify="left")
    for name in ("trial", "backbone", "loss", "lr", "epoch", "best mAP", "state"):
        table.add_column(name, justify="right" if name in ("lr", "epoch", "best mAP") else "left")
    for row in rows:
        shown = f"{row.best_map:.4f}" if math.isfinite(row.best_map) else "-"
        state = f"{row.state}: {row.reason}" if row.reason else row.state
        table.add_row(row.trial_id, row.backbone, row.loss, f"{row.lr:.2e}", str(row.epoch), shown, state)
    return table


class TrialTable(Callback):  # type: ignore[misc]
    """Ray Tune's callbacks, turned into rows.

    Args:
        total: trials of the whole search.
        ended: called with the row of each trial that ended.
        epochs: of a full trial; a trial that completed fewer was pruned.
    """

    def __init__(self, total: int, epochs: int, ended: Callable[[TrialRow], None]) -> None:
        self.total, self.epochs, self.ended = total, epochs, ended
        self.rows: dict[str, TrialRow] = {}
        self._start = time.monotonic()
        self._live: Live | None = None

    def start(self) -> None:
        """Begin to show the table, where stderr is a terminal."""
        if sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), refresh_per_second=2)
            self._live.start()

    def stop(self) -> None:
        """End the live display; its last state stays on the terminal."""
        if self._live:
            self._live.stop()
            self._live = None

    def ordered(self) -> list[TrialRow]:
        """The rows, best first; trials without an epoch last."""
        return sorted(
            self.rows.values(), key=lambda row: -row.best_map if math.isfinite(row.best_map) else 1.0
        )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray's hook."""
        self._show(row_of(trial, "running"))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Ray's hook."""
        self._show(row_of(trial, "running", result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray's hook: also called for a trial that the scheduler stopped."""
        row = row_of(trial, "completed")
        self._end(row if row.epoch >= self.epochs else row_of(trial, "pruned"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray's hook."""
        self._end(row_of(trial, "failed"))

    def _end(self, row: TrialRow) -> None:
        self._show(row)
        self.ended(row)

    def _show(self, row: TrialRow) -> None:
        self.rows[row.trial_id] = row
        done = sum(row.state != "running" for row in self.rows.values())
        seconds = time.monotonic() - self._start
        title = f"{done} of {self.total} trials ended, {seconds:.0f} s"
        if self._live:
            self._live.update(build_table(self.ordered(), title))
            return
        best = f"best mAP {row.best_map:.4f}" if math.isfinite(row.best_map) else ""
        words = f"trial {row.trial_id}  {row.backbone} {row.loss} lr {row.lr:.1e}  epoch {row.epoch}  {best}"
        print(f"[{title}] {words}  {row.state} {row.reason}".rstrip(), file=sys.stderr, flush=True)


def row_of(trial: Any, state: str, result: dict[str, Any] | None = None) -> TrialRow:
    """The row of one of Ray Tune's trials, from its last result unless a newer one is given."""
    last = result or trial.last_result or {}
    reason = ""
    if state == "failed":
        # Ray copies this file to the search's folder only later; here it still lies in the driver's own.
        text = Path(trial.error_file).read_text().strip() if trial.error_file else ""
        reason = text.splitlines()[-1][:200] if text else "the worker died"
    return TrialRow(
        trial_id=trial.trial_id,
        state=state,
        backbone=trial.config["backbone"].partition("=")[0],
        loss=trial.config["loss"],
        lr=float(trial.config["lr"]),
        epoch=int(last.get("epoch", 0)),
        best_map=float(last.get("best_map", math.nan)),
        reason=reason,
    )
