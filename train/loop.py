"""The training of one configuration: what the command line, the search and the tests all call.

    from train.loop import fit
    result = fit(preset("smoke"))

Everything a run writes lies in its `out` folder; the weights that were best on the selection part are in
`best.pt`, and `last.pt` holds what `resume` needs.
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.errors import InputError, unknown
from data.image import fingerprint
from data.progress import ProgressBar
from eval.metrics import average_precision, mean_average_precision
from train import augment, checkpoint
from train.backbones import BACKBONES
from train.batches import Batches
from train.config import (
    TrainConfig,
    flatten,
    to_dict,
    write_config,
)
from train.curves import draw_curves
from train.display import banner, epoch_line, run_name
from train.ema import ExponentialMovingAverage
from train.environment import Environment, describe_data, describe_model, describe_session
from train.evaluation import predict
from train.examples import Examples, open_examples
from train.heads import HEADS, make_model
from train.losses import LOSSES, make_loss, reduce_terms
from train.optimization import learning_rate_factor, parameter_groups
from train.precision import choose_precision
from train.revision import source_revision
from train.run_folder import check_same, write_history, write_selection
from train.tracking import MlflowTracker, NoTracker, Tracker


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        epoch: counted from 1.
        metrics: train/loss (nats a pair), val/map and val/ap/<class> (VOC 2010, on the selection part, NaN
            for a class without a positive), lr (of the head, at the end), time/seconds and
            time/images_per_second (training without evaluation).
        best: whether val/map is the best so far.
    """

    epoch: int
    metrics: Mapping[str, float]
    best: bool


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


class Diverged(InputError):
    """The loss is no longer a finite number."""


def fit(
    config: TrainConfig,
    report: Callable[[Epoch], None] = lambda epoch: None,
    tags: Mapping[str, str] | None = None,
) -> Result:
    """Train one configuration, on this process or together with the others that Accelerate started.

    Args:
        config: what to do. `config.out` must be set; the same folder with `resume` goes on after the last
            finished epoch.
        report: called by the main process after each epoch; what it raises stops the run, which can be
            resumed.
        tags: for the MLflow run, such as its parent.

    Raises:
        InputError: bad configuration or data; `Diverged` where the loss is not finite.
    """
    if config.out is None:
        raise InputError("out must be set: the folder that owns what the run writes")
    check_names(config)
    precision, reason = choose_precision(config.precision)
    # Our sampler and schedule know the number of processes themselves, so neither is given to Accelerate.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    torch.set_num_threads(config.threads or _share_of_cores())
    if accelerator.is_main_process:
        checkpoint.claim(config.out, config.overwrite, config.resume)
    accelerator.wait_for_everyone()
    examples = open_examples(config.data, config.seed)
    run = _Run(config, config.out, accelerator, examples, dict(tags or {}))
    if accelerator.is_main_process:
        banner(config, accelerator, examples, precision, reason)
    return run.train(report)


def check_names(config: TrainConfig) -> None:
    """Refuse unknown names before anything is decoded or written."""
    registries: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("backbone", config.model.backbone, BACKBONES),
        ("head", config.model.head, HEADS),
        ("loss", config.loss.name, LOSSES),
    )
    for kind, name, registry in registries:
        if name not in registry:
            raise unknown(kind, name, registry)


def _share_of_cores() -> int:
    """The cores of this machine that this process may use, shared out among the processes on it."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Run:
    """The state of one run in one process; the file of its environment exists in the main process alone."""

    environment: Environment

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        accelerator: Accelerator,
        examples: Examples,
        tags: dict[str, str],
    ) -> None:
        self.config, self.out, self.accelerator, self.examples, self.tags = (
            config,
            out,
            accelerator,
            examples,
            tags,
        )
        labels = examples.labels
        torch.manual_seed(config.seed)
        model = make_model(config.model, len(labels.classes), config.data.size)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.loss = make_loss(config.loss, torch.from_numpy(examples.positive_share()).float()).to(
            accelerator.device
        )
        self.batches = Batches(
            examples.cache.pixels,
            examples.train,
            labels.target,
            labels.mask,
            config.batch_size,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        model.to(accelerator.device)
        self.ema = ExponentialMovingAverage(model, config.ema)
        self.peak_lr, groups = parameter_groups(model, config.optimizer)
        optimizer = torch.optim.AdamW(groups, lr=config.optimizer.lr)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_map = 0, -math.inf
        self.run_id = ""
        if config.resume:
            self._restore()

    def train(self, report: Callable[[Epoch], None]) -> Result:
        """Run the epochs that are left, record them, and say where it ended."""
        config, main = self.config, self.accelerator.is_main_process
        if main:
            write_config(self.out / checkpoint.CONFIG, config)
            write_selection(self.out / checkpoint.SELECTION, self.examples)
            self.environment = Environment(
                self.out / checkpoint.ENVIRONMENT,
                describe_data(self.examples, config.data.size),
                describe_model(config, self.ema.model),
                describe_session(config, self.accelerator),
            )
        with self._tracked() as tracker:
            self.run_id = tracker.run_id
            for number in range(len(self.history) + 1, config.schedule.epochs + 1):
                metrics = self._epoch(number)
                best = metrics["val/map"] > self.best_map
                if best:
                    self.best_epoch, self.best_map = number, metrics["val/map"]
                self.history.append(metrics)
                if main:
                    self._save(best)
                    tracker.epoch(number, metrics)
                    print(
                        epoch_line(number, config.schedule.epochs, metrics, best),
                        file=sys.stderr,
                        flush=True,
                    )
                    report(Epoch(number, metrics, best))
                self.accelerator.wait_for_everyone()
                if config.schedule.patience and number - self.best_epoch >= config.schedule.patience:
                    break
            return self._result()

    def _epoch(self, number: int) -> dict[str, float]:
        """Train one epoch (counted from 1) and evaluate it on the selection part."""
        config, accelerator, device = self.config, self.accelerator, self.accelerator.device
        start = time.monotonic()
        total = torch.zeros(2, dtype=torch.float64)  # sum of the loss, number of valid pairs
        self.model.train()
        steps = self.batches.steps
        progress = ProgressBar(f"epoch {number}/{config.schedule.epochs}", steps * self.batches.batch_size)
        with progress if accelerator.is_main_process else _nothing():
            for i, batch in enumerate(self.batches.epoch(number)):
                step = (number - 1) * steps + i
                # Dropout's numbers depend on the seed and the step alone, as the order and augmentation do.
                torch.manual_seed(config.seed * 1_000_003 + step * 101 + accelerator.process_index)
                generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
                draws = augment.draw(config.augment, self.batches.batch_size, generator)
                pixels = augment.apply(batch.pixels.to(device), draws.rows(batch.first, batch.last))
                target, mask = batch.target.to(device), batch.mask.to(device)
                factor = learning_rate_factor(config.schedule, step, steps)
                for group, peak in zip(self.optimizer.param_groups, self.peak_lr, strict=True):
                    group["lr"] = peak * factor
                with accelerator.autocast():
                    logit = self.model(pixels)
                terms = self.loss(logit, target, mask)
                valid = accelerator.reduce(terms.weight.sum(), reduction="mean")
                loss = reduce_terms(terms, valid)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise self._diverged(number, step, batch.first)
                self.optimizer.zero_grad()
                accelerator.backward(loss)
                if config.optimizer.clip:
                    accelerator.clip_grad_norm_(self.model.parameters(), config.optimizer.clip)
                self.optimizer.step()
                self.ema.update(accelerator.unwrap_model(self.model), step + 1)
                total += torch.tensor([value * float(valid), float(valid)], dtype=torch.float64)
                progress.advance(self.batches.batch_size, f"loss {value:.4f}")
        seconds = time.monotonic() - start
        total = accelerator.reduce(total.to(device, torch.float32), reduction="sum").cpu()
        ap = self._evaluate()
        mean, _ = mean_average_precision(ap)
        images = steps * self.batches.batch_size
        metrics = {
            "train/loss": float(total[0] / total[1]),
            "val/map": mean,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "time/seconds": seconds,
            "time/images_per_second": images / seconds,
        }
        classes = self.examples.labels.classes
        return metrics | {f"val/ap/{name}": float(value) for name, value in zip(classes, ap, strict=True)}

    def _evaluate(self) -> npt.NDArray[np.float64]:
        """float64[C]: AP (VOC 2010) of the averaged weights on the selection part, the same in every process."""
        labels, index = self.examples.labels, self.examples.selection
        accelerator = self.accelerator
        mine = index[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            logit = predict(self.ema.model, self.examples.cache.pixels, mine, accelerator.device)
        # By image, so that no process's share is counted twice where the shares differ in length.
        parts = gather_object([(mine, logit)])
        all_logits = np.empty((len(labels), len(labels.classes)), dtype=np.float32)
        for rows, values in parts:
            all_logits[rows] = values
        ids = [labels.image_ids[i] for i in index]
        return average_precision(all_logits[index], labels.target[index], labels.mask[index], ids)

    def _diverged(self, epoch: int, step: int, first: int) -> Diverged:
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.examples.train)
        row = order[(step % self.batches.steps) * self.batches.batch_size + first]
        return Diverged(
            f"the loss is not finite at step {step} (epoch {epoch}, batch from image "
            f"'{self.examples.labels.image_ids[row]}'); lower --optimizer.lr and --optimizer.backbone-lr, or use "
            f"--precision float32"
        )

    def _save(self, best: bool) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if best:
            checkpoint.save(
                self.out / checkpoint.BEST, {"model": self.ema.model.state_dict()} | self._about()
            )
        state = {
            "model": model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_map": self.best_map,
            "run_id": self.run_id,
        }
        checkpoint.save(self.out / checkpoint.LAST, state)
        write_history(self.out / checkpoint.HISTORY, self.history)
        self.environment.write("RUNNING", self.run_id)

    def _about(self) -> dict[str, Any]:
        return {
            "classes": list(self.examples.labels.classes),
            "size": self.config.data.size,
            "preprocessing": fingerprint(self.config.data.size),
            "data_fingerprint": self.examples.labels.fingerprint(),
            "source_revision": source_revision(),
            "run_id": self.run_id,
            "epoch": self.best_epoch,
            "map": self.best_map,
        }

    def _restore(self) -> None:
        path = self.out / checkpoint.LAST
        state = checkpoint.load(path)
        check_same(self.out / checkpoint.CONFIG, self.config)
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.best_epoch, self.best_map = state["best_epoch"], state["best_map"]
        self.run_id = state["run_id"]

    @contextmanager
    def _tracked(self) -> Iterator[Tracker]:
        """The tracker of the main process; closes the MLflow run as what became of the training."""
        config, labels = self.config, self.examples.labels
        tracker: Tracker = NoTracker()
        if config.tracking.enabled and self.accelerator.is_main_process:
            counts = {"train": len(self.examples.train), "selection": len(self.examples.selection)}
            tracker = MlflowTracker(
                config.tracking.experiment,
                config.tracking.run_name or run_name(config),
                flatten(to_dict(config)),
                {
                    "name": labels.name,
                    "digest": labels.fingerprint(),
                    "source": str(labels.paths[0].parent.resolve()),
                    "profile": json.dumps(counts | {"classes": len(labels.classes)}),
                },
                {"source_revision": source_revision(), **self.tags},
                self.run_id,
            )
        recorded = (checkpoint.CONFIG, checkpoint.HISTORY, checkpoint.SELECTION, checkpoint.ENVIRONMENT)
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
                self.environment.write(status, self.run_id)
                if self.history:
                    draw_curves(self.out / checkpoint.CURVES, self.history)
                    files.append(self.out / checkpoint.CURVES)
                    tracker.finish(status, {"best/map": self.best_map, "best/epoch": self.best_epoch}, files)
                else:
                    tracker.finish(status, {}, files)

    def _result(self) -> Result:
        seconds = sum(epoch["time/seconds"] for epoch in self.history)
        images = len(self.history) * self.batches.steps * self.batches.batch_size
        result = Result(
            self.out,
            self.best_epoch,
            self.best_map,
            len(self.history),
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
