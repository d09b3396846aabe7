"""The table of trials while they run: live on a terminal, a line for each epoch elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tune.points import shown
from tune.rows import TrialRow, best_first

# Ray Tune's names for a trial that has ended, and ours.
_STATES = {"TERMINATED": "completed", "ERROR": "failed"}


def build_table(rows: Sequence[TrialRow], title: str) -> Table:
    """The trials as a table, best first; a setting that is the same in all is left out."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    varied = [
        k for k in keys if len({str(row.point.get(k)) for row in rows}) > 1 or k in ("backbone", "loss")
    ]
    table.add_column("trial", no_wrap=True)
    for key in varied:
        table.add_column(key, overflow="fold")
    for name in ("epoch", "mAP"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold", min_width=10)
    for row in best_first(rows):
        settings = [_short(row.point.get(key)) for key in varied]
        found = f"{row.best_map:.4f}" if math.isfinite(row.best_map) else "-"
        state = f"{row.state}: {row.reason}" if row.reason else row.state
        if row.restarts:
            state += f" ({row.restarts} restart{'s' * (row.restarts > 1)})"
        table.add_row(row.trial_id[-8:], *settings, str(row.epoch), found, state)
    return table


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2e}" if value < 0.01 or value >= 1000 else f"{value:.4g}"
    return str(value)


class TrialTable(Callback):  # type: ignore[misc]
    """Ray Tune's callbacks, turned into rows.

    Args:
        total: trials of the whole search.
        ended: called with the row of each trial that ended, and all rows.
        epochs: of a full trial; a trial that completed fewer was pruned.
        name: of what is running, for the lines that are printed ("trials", "runs of the race").
        seconds: after which Ray Tune stops every trial; 0 = no limit.
    """

    def __init__(
        self,
        total: int,
        epochs: int,
        ended: Callable[[TrialRow, Sequence[TrialRow]], None],
        name: str = "trials",
        seconds: float = 0.0,
    ) -> None:
        self.total, self.epochs, self.name = total, epochs, name
        self._ended, self._seconds = ended, seconds
        self.rows: dict[str, TrialRow] = {}
        self.points: dict[str, dict[str, Any]] = {}  # of each trial, whole
        # In seconds since 1970: when Ray Tune began to start trials, and when the first one's process was ready.
        self.asked = self.first_start = math.nan
        self._begun: dict[str, float] = {}
        self._start = time.monotonic()
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray saves its callbacks with the search; a resumed one has a table of its own."""
        return self.__dict__ | {"_ended": None, "_live": None}

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

    @property
    def time_is_over(self) -> bool:
        """Whether the limit of `seconds` has passed."""
        return bool(self._seconds) and time.monotonic() - self._start >= self._seconds

    def settle(self, trials: Sequence[Any]) -> None:
        """After the end: rows of the trials that Ray Tune did not say the end of."""
        for trial in trials:
            self.points[trial.trial_id] = trial.config["point"]
            known = self.rows.get(trial.trial_id)
            if known is None or known.state == "running":
                state = _STATES.get(trial.status, "unfinished")
                row = self._row(trial, state)
                if state == "completed" and row.epoch < self.epochs:
                    # One that was running when Ctrl-C came goes on with --resume; one that this session did not see
                    # at all ended in an earlier one.
                    stopped = known is not None and not self.time_is_over
                    row = replace(row, state="unfinished" if stopped else "pruned")
                self.rows[trial.trial_id] = row

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray's hook: it is about to start what there is room for."""
        if math.isnan(self.asked):
            self.asked = time.time()
            self.settle([trial for trial in trials if trial.status in _STATES])  # ended in an earlier session

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray's hook: also called for each new start after a fault."""
        now = time.time()
        self.first_start = now if math.isnan(self.first_start) else self.first_start
        self._begun.setdefault(trial.trial_id, now)
        self._show(self._row(trial, "running"))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Ray's hook."""
        self._show(self._row(trial, "running", result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray's hook: also called for a trial that the scheduler stopped."""
        row = self._row(trial, "completed")
        if row.epoch < self.epochs:
            row = replace(row, state="pruned", reason="the time is over" if self.time_is_over else "")
        self._end(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray's hook, after the last retry."""
        self._end(self._row(trial, "failed"))

    def _end(self, row: TrialRow) -> None:
        self._show(row)
        self._ended(row, list(self.rows.values()))

    def _row(self, trial: Any, state: str, result: dict[str, Any] | None = None) -> TrialRow:
        self.points[trial.trial_id] = trial.config["point"]
        row = row_of(trial, state, result)
        last = result or trial.last_result or {}
        before = self.rows.get(trial.trial_id)
        if before and math.isfinite(before.first_step):
            return replace(row, first_step=before.first_step)
        seconds = float(last.get("first_step_at", math.nan)) - self._begun.get(trial.trial_id, math.nan)
        return replace(row, first_step=seconds if seconds >= 0 else math.nan)  # before: of an earlier session

    def _show(self, row: TrialRow) -> None:
        self.rows[row.trial_id] = row
        done = sum(row.state != "running" for row in self.rows.values())
        seconds = time.monotonic() - self._start
        title = f"{done} of {self.total} {self.name} ended, {seconds:.0f} s"
        if self._live:
            self._live.update(build_table(list(self.rows.values()), title))
            return
        best = f"best mAP {row.best_map:.4f}" if math.isfinite(row.best_map) else ""
        point = " ".join(_short(value) for key, value in row.point.items() if key != "finalist")
        words = f"trial {row.trial_id}  {point}  epoch {row.epoch}  {best}"
        print(f"[{title}] {words}  {row.state} {row.reason}".rstrip(), file=sys.stderr, flush=True)


def row_of(trial: Any, state: str, result: dict[str, Any] | None = None) -> TrialRow:
    """The row of one of Ray Tune's trials, from its last result unless a newer one is given."""
    last = result or trial.last_result or {}
    reason = ""
    if state == "failed":
        # Ray copies this file to the search's folder only later; here it still lies in the driver's own.
        text = Path(trial.error_file).read_text().strip() if trial.error_file else ""
        reason = last_line(text) or "the worker died"
    return TrialRow(
        trial_id=trial.trial_id,
        state=state,
        point=shown(trial.config["point"]),
        epoch=int(last.get("epoch", 0)),
        best_map=float(last.get("best_map", math.nan)),
        map_low=float(last.get("map_low", math.nan)),
        map_high=float(last.get("map_high", math.nan)),
        restarts=max(
            0, trial.run_metadata.num_failures - (state == "failed")
        ),  # the last fault had no restart
        node=str(last.get("node", "")),
        gpu=str(last.get("gpu", "")),
        run_id=str(last.get("run_id", "")),
        reason=reason,
    )


def last_line(text: str) -> str:
    """What a traceback ends with, at most 300 characters; of Ray's page on a lack of memory, that it is one."""
    if "OOM kill reason" in text:
        remedy = "lower --batch-size or --search.concurrency"
        return f"out of memory: the machine ran low on it and Ray killed the process; {remedy}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
