"""The training of one configuration: what the command line, the search and the tests all call.

    from train.loop import fit
    result = fit(preset("smoke"))

Everything a run writes lies in its `out` folder; the weights that were best on the selection part are in
`best.pt`, and `last.pt` holds what `resume` needs.
"""

import dataclasses
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.errors import InputError
from data.image import fingerprint
from data.progress import ProgressBar
from eval.metrics import mean_average_precision
from train import checkpoint
from train.batches import Batches
from train.config import TrainConfig
from train.config_files import write_config
from train.curves import draw_curves
from train.display import banner, epoch_line
from train.divergence import Diverged, LossWatch
from train.environment import Environment, describe_data, describe_model, describe_session
from train.evaluation import predict
from train.examples import Examples, open_examples
from train.interrupt import Interrupts, leave
from train.process import check_names, start_process
from train.recorded import open_tracker
from train.revision import source_revision
from train.run_folder import check_same, write_diverged, write_history, write_selection
from train.selection_scores import (
    SelectionScores,
    best_figures,
    write_selection_scores,
)
from train.step import Stepped, Stepper
from train.tracking import NoTracker, Tracker

# Steps between two questions of several GPUs whether any was told to stop: each makes the CPU wait for them.
_GPU_ASKS_EVERY = 10


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        epoch: counted from 1.
        metrics: train/loss (nats a pair), val/map and val/ap/<class> (VOC 2010, on the selection part, NaN
            for a class without a positive), lr (of the head, at the end), time/seconds and
            time/images_per_second (training without evaluation).
        best: whether val/map is the best so far.
        scores: of the selection part, in every process.
        first_step_at: when this process took its first step, in seconds since 1970.
        run_id: of MLflow, "" where it is not tracked or not known yet.
    """

    epoch: int
    metrics: Mapping[str, float]
    best: bool
    scores: SelectionScores
    first_step_at: float
    run_id: str


@dataclass(frozen=True, slots=True)
class Result:
    """Where a run ended: its folder, its best epoch with the selection mAP of it, and what it took."""

    out: Path
    best_epoch: int
    best_map: float
    epochs: int
    seconds: float
    images_per_second: float
    run_id: str


def fit(
    config: TrainConfig,
    report: Callable[[Epoch], None] = lambda epoch: None,
    tags: Mapping[str, str] | None = None,
    report_everywhere: bool = False,
) -> Result:
    """Train one configuration, on this process or together with the others that Accelerate started.

    Args:
        config: what to do. `config.out` must be set; the same folder with `resume` goes on where the last
            checkpoint was written, in the middle of an epoch too, and ends with the weights of a run that
            was never interrupted.
        report: called by the main process after each epoch; what it raises stops the run, which can be
            resumed.
        tags: for the MLflow run, such as its parent.
        report_everywhere: call `report` in every process, with the same metrics: for a caller that waits for all.

    Raises:
        InputError: bad configuration or data; `Diverged` where the loss is not finite or explodes.
        KeyboardInterrupt, Terminated: on Ctrl-C and SIGTERM, after the step in progress was saved.
    """
    if config.out is None:
        raise InputError("out must be set: the folder that owns what the run writes")
    check_names(config)
    accelerator, reason = start_process(config)
    if accelerator.is_main_process:
        checkpoint.claim(config.out, config.overwrite, config.resume)
    accelerator.wait_for_everyone()
    examples = open_examples(config.data)
    run = _Run(config, config.out, accelerator, examples, dict(tags or {}))
    if accelerator.is_main_process:
        banner(config, accelerator, examples, reason)
    return run.train(report, report_everywhere)


class _Progress:
    """Where a run stands between two steps; all of it goes into a checkpoint.

    Attributes:
        history: the metrics of the finished epochs.
        step: steps done of the epoch in progress.
        total: float64[2], over these steps: the sum of loss * weight, and of weight.
        seconds: of training in the epoch in progress.
        best_epoch, best_map: so far.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.total = torch.zeros(2, dtype=torch.float64)
        self.seconds = 0.0
        self.best_epoch, self.best_map = 0, -math.inf


class _Run:
    """The state of one run in one process; the file of its environment exists in the main process alone."""

    environment: Environment
    scored: SelectionScores

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        accelerator: Accelerator,
        examples: Examples,
        tags: dict[str, str],
    ) -> None:
        self.config, self.out, self.accelerator = config, out, accelerator
        self.examples, self.tags = examples, tags
        labels = examples.labels
        self.batches = Batches(
            examples.cache.pixels,
            examples.train,
            labels.target,
            labels.mask,
            config.batch_size,
            config.seed,
            config.augment,
            accelerator.process_index,
            accelerator.num_processes,
            pin=accelerator.device.type == "cuda",
        )
        self.stepper = Stepper(
            config,
            len(labels.classes),
            torch.from_numpy(examples.positive_share()).float(),
            accelerator,
            self.batches.steps,
            self.batches.batch_size,
        )
        self.progress, self.watch = _Progress(), LossWatch()
        self.tracker: Tracker = NoTracker()
        self.resumed_run = ""
        self.saved_at, self.first_step_at = time.monotonic(), 0.0
        if config.resume:
            self._restore()

    def train(self, report: Callable[[Epoch], None], everywhere: bool) -> Result:
        """Run the epochs that are left, record them, and say where it ended."""
        config, main, progress = self.config, self.accelerator.is_main_process, self.progress
        if main:
            write_config(self.out / checkpoint.CONFIG, config)
            write_selection(self.out / checkpoint.SELECTION, self.examples)
            self.environment = Environment(
                self.out / checkpoint.ENVIRONMENT,
                describe_data(self.examples, config.data.size),
                describe_model(config, self.stepper.ema.model),
                describe_session(config, self.accelerator),
            )
        with self._tracked() as tracker, Interrupts().watched() as interrupts:
            self.tracker = tracker
            for number in range(len(progress.history) + 1, config.schedule.epochs + 1):
                metrics = self._epoch(number, interrupts)
                best = config.schedule.keep == "last" or metrics["val/map"] > progress.best_map
                if best:
                    progress.best_epoch, progress.best_map = number, metrics["val/map"]
                progress.history.append(metrics)
                progress.step, progress.seconds = 0, 0.0
                progress.total.zero_()
                if main and best:
                    weights = {"model": self.stepper.ema.model.state_dict()}
                    checkpoint.save(self.out / checkpoint.BEST, weights | self._about())
                    write_selection_scores(self.out / checkpoint.SELECTION_SCORES, self.scored)
                self._save()
                if main:
                    tracker.epoch(number, metrics)
                    line = epoch_line(number, config.schedule.epochs, metrics, best)
                    print(line, file=sys.stderr, flush=True)
                if main or everywhere:
                    report(Epoch(number, metrics, best, self.scored, self.first_step_at, self.run_id))
                self.accelerator.wait_for_everyone()
                if config.schedule.patience and number - progress.best_epoch >= config.schedule.patience:
                    break
                if number < config.schedule.epochs:
                    (received,) = self._largest(interrupts.received)
                    if received:
                        self._leave(received)
        return self._result()

    def _epoch(self, number: int, interrupts: Interrupts) -> dict[str, float]:
        """Train one epoch (counted from 1), or what is left of it, and evaluate it on the selection part."""
        config, accelerator, progress = self.config, self.accelerator, self.progress
        steps, size = self.batches.steps, self.batches.batch_size
        seconds_before, start = progress.seconds, time.monotonic()
        self.stepper.train_mode()
        bar = ProgressBar(f"epoch {number}/{config.schedule.epochs}", steps * size)
        # A GPU would be waited for: there a loss is looked at one step later.
        waiting: deque[tuple[int, Stepped]] = deque()
        late = 0 if accelerator.device.type == "cpu" else 1

        def settle(leave_out: int) -> None:
            while len(waiting) > leave_out:
                self._take(number, *waiting.popleft(), bar)

        with bar if accelerator.is_main_process else _nothing():
            bar.advance(progress.step * size)
            for batch in self.batches.epoch(number, progress.step):
                stepped = self.stepper.step(batch, (number - 1) * steps + batch.step)
                waiting.append((batch.step, stepped))
                self.first_step_at = self.first_step_at or time.time()
                settle(late)
                received, due = self._asked(batch.step, interrupts)
                if (received or due) and batch.step + 1 < steps:
                    settle(0)
                    progress.seconds = seconds_before + time.monotonic() - start
                    self._save()
                    if received:
                        self._leave(received)
            settle(0)
        seconds = seconds_before + time.monotonic() - start
        ap = self._evaluate()
        mean, _ = mean_average_precision(ap)
        metrics = {
            "train/loss": float(progress.total[0] / progress.total[1]),
            "val/map": mean,
            "lr": self.stepper.lr,
            "time/seconds": seconds,
            "time/images_per_second": steps * size / seconds,
        }
        classes = self.examples.labels.classes
        return metrics | {f"val/ap/{name}": float(value) for name, value in zip(classes, ap, strict=True)}

    def _take(self, epoch: int, step: int, stepped: Stepped, bar: ProgressBar) -> None:
        """Add a step to the account; its loss is looked at here, so that a GPU may already work on the next."""
        loss, weight = float(stepped.loss), float(stepped.weight)
        whole = (epoch - 1) * self.batches.steps + step
        try:
            self.watch.see(loss, whole, lambda: self._image_ids(epoch, step))
        except Diverged as error:
            if self.accelerator.is_main_process:
                write_diverged(self.out / checkpoint.DIVERGED, epoch, error)
            raise
        self.progress.total += torch.tensor([loss * weight, weight], dtype=torch.float64)
        self.progress.step = step + 1
        bar.advance(self.batches.batch_size, f"loss {loss:.4f}")

    def _image_ids(self, epoch: int, step: int) -> Sequence[str]:
        return [self.examples.labels.image_ids[row] for row in self.batches.images(epoch, step)]

    def _asked(self, step: int, interrupts: Interrupts) -> tuple[int, bool]:
        """The signal that any process received (0 = none), and whether a checkpoint is due; alike in all."""
        minutes = self.config.checkpoint_minutes
        due = minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes
        if self.accelerator.num_processes == 1:
            return interrupts.received, due
        if self.accelerator.device.type == "cuda" and (step + 1) % _GPU_ASKS_EVERY:
            return 0, False
        # The main process alone decides when a checkpoint is due: their clocks differ.
        received, save = self._largest(interrupts.received, int(due and self.accelerator.is_main_process))
        return received, bool(save)

    def _largest(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float32, device=self.accelerator.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return [int(number) for number in shared]

    def _leave(self, received: int) -> None:
        """End the run here; it was saved."""
        if self.accelerator.is_main_process:
            done, step = len(self.progress.history), self.progress.step
            print(
                f"stopped after epoch {done} and {step} steps; go on with --resume --out {self.out}",
                file=sys.stderr,
                flush=True,
            )
        leave(received)

    def _evaluate(self) -> npt.NDArray[np.float64]:
        """float64[C]: AP (VOC 2010) of the averaged weights on the selection part, the same in every process."""
        labels, index = self.examples.labels, self.examples.selection
        accelerator = self.accelerator
        mine = index[accelerator.process_index :: accelerator.num_processes]
        pixels, model = self.examples.cache.pixels, self.stepper.ema.model
        with accelerator.autocast():
            logit = predict(model, pixels, mine, accelerator.device, flip=self.config.flip_test)
        # By image, so that no process's share is counted twice where the shares differ in length.
        parts = gather_object([(mine, logit)])
        all_logits = np.empty((len(labels), len(labels.classes)), dtype=np.float32)
        for rows, values in parts:
            all_logits[rows] = values
        self.scored = self.examples.selection_scores(all_logits[index])
        return self.scored.ap()

    @property
    def run_id(self) -> str:
        """Of MLflow, "" until it has answered."""
        return self.tracker.run_id

    def _save(self) -> None:
        """Write the checkpoint, the history and the environment (main process only)."""
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        progress = self.progress
        state = self.stepper.state() | {
            "history": progress.history,
            "step": progress.step,
            "total": progress.total,
            "seconds": progress.seconds,
            "best_epoch": progress.best_epoch,
            "best_map": progress.best_map,
            "watch": self.watch.state(),
            "run_id": self.run_id,
        }
        checkpoint.save(self.out / checkpoint.LAST, state, keep=self.out / checkpoint.PREVIOUS)
        if progress.history:
            write_history(self.out / checkpoint.HISTORY, progress.history)
        self.environment.write("RUNNING", self.run_id)

    def _about(self) -> dict[str, Any]:
        return {
            "classes": list(self.examples.labels.classes),
            "size": self.config.data.size,
            "preprocessing": fingerprint(self.config.data.size),
            "data_fingerprint": self.examples.labels.fingerprint(),
            "source_revision": source_revision(),
            "run_id": self.run_id,
            "epoch": self.progress.best_epoch,
            "map": self.progress.best_map,
        }

    def _restore(self) -> None:
        state = checkpoint.load_latest(self.out)
        check_same(self.out / checkpoint.CONFIG, self.config)
        self.stepper.restore(state)
        progress = self.progress
        progress.history, progress.step = state["history"], state["step"]
        progress.total, progress.seconds = state["total"], state["seconds"]
        progress.best_epoch, progress.best_map = state["best_epoch"], state["best_map"]
        self.watch.restore(state["watch"])
        self.resumed_run = state["run_id"]

    @contextmanager
    def _tracked(self) -> Iterator[Tracker]:
        """The tracker of the main process; closes the MLflow run as what became of the training."""
        tracker: Tracker = NoTracker()
        if self.config.tracking.enabled and self.accelerator.is_main_process:
            tracker = open_tracker(self.config, self.out, self.examples, self.tags, self.resumed_run)
        recorded = (
            checkpoint.CONFIG,
            checkpoint.HISTORY,
            checkpoint.SELECTION,
            checkpoint.ENVIRONMENT,
            checkpoint.DIVERGED,
        )
        files = [self.out / name for name in recorded]
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit, StopIteration):
            status = "KILLED"
            raise
        finally:
            if self.accelerator.is_main_process:
                known = self.run_id
                self.environment.write(status, known)
                if self.progress.history:
                    draw_curves(self.out / checkpoint.CURVES, self.progress.history)
                    files.append(self.out / checkpoint.CURVES)
                    files.append(self.out / checkpoint.SELECTION_SCORES)
                    best = {"best/map": self.progress.best_map, "best/epoch": self.progress.best_epoch}
                    best |= best_figures(self.out / checkpoint.SELECTION_SCORES)
                    tracker.finish(status, best, files)
                else:
                    tracker.finish(status, {}, files)
                if self.run_id != known:  # MLflow had not answered before
                    self.environment.write(status, self.run_id)

    def _result(self) -> Result:
        seconds = sum(epoch["time/seconds"] for epoch in self.progress.history)
        images = len(self.progress.history) * self.batches.steps * self.batches.batch_size
        result = Result(
            self.out,
            self.progress.best_epoch,
            self.progress.best_map,
            len(self.progress.history),
            seconds,
            images / seconds,
            self.run_id,
        )
        if self.accelerator.is_main_process:
            text = json.dumps(dataclasses.asdict(result) | {"out": str(self.out)}, indent=2)
            (self.out / checkpoint.RESULT).write_text(text + "\n", encoding="utf-8")
        return result


@contextmanager
def _nothing() -> Iterator[None]:
    yield
