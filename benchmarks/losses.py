"""Which loss for which figure: trains each loss with several seeds, and compares them on val.

    python benchmarks/losses.py                                     tiny_cnn at 64 px on the synthetic devkit
    python benchmarks/losses.py --losses bce asl tail --seeds 0 --epochs 2 --out runs/try        a first look
    python benchmarks/losses.py --data DEVKIT --backbone mobilenet_v2 --weights PATH --size 128 --epochs 6 \\
        --classes cat cow dog horse person sheep --out runs/losses-real

A loss may carry settings: tail:tail_power=1:queue=1024. Each run keeps the epoch that was best on the selection part,
as every training does, and is then judged once on the evaluation split. What is done is written to `--out` at once
(results.json and the logits); the same command goes on where it was stopped and prints the tables again.

The figures, each a mean over the classes: mAP (VOC 2010); the area under Tailacc over the relative position, and the
same after Platt's calibration on the selection part, which puts the threshold of every loss at a probability of 1/2;
precision among the first k images; expected calibration error before and after that calibration; and how many images
score above 0.5 for each positive (a Tailacc from few images is cheap).
"""

import dataclasses
import json
import math
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.cli import run
from data.errors import InputError, unknown

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint8]

FIGURES = {
    "map": "mAP",
    "tail": "Tailacc area",
    "tail_calibrated": "Tailacc area, calibrated",
    "precision": "P@k",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "yes": "yes per positive",
}


@dataclass(frozen=True)
class Options:
    """What is trained and compared.

    Attributes:
        data: devkit; None: $VOC_ROOT or else the synthetic one, with the settings of preset demo.
        backbone, weights, size, epochs, lr, backbone_lr: instead of the preset's ("demo", with --data "baseline").
        losses: names, each with its settings where it has some: NAME:SETTING=VALUE.
        seeds: of initial weights, order and augmentation; the selection part stays the same.
        classes: figures are means over these; empty = all.
        split: that is judged.
        at: k of precision at k; 0 = 50, or 10 where a class has fewer than 50 positives.
        draws: of the bootstrap.
        out: folder of the results.
    """

    data: Path | None = None
    backbone: str | None = None
    weights: str | None = None
    size: int | None = None
    epochs: int | None = None
    lr: float | None = None
    backbone_lr: float | None = None
    losses: tuple[str, ...] = (
        "bce", "asl", "tail", "proper", "smooth_ap", "top_precision", "focal", "pos_weighted",
        "class_balanced", "apl", "hill", "two_way", "zlpr", "lsep",
    )  # fmt: skip
    seeds: tuple[int, ...] = (0, 1, 2)
    classes: tuple[str, ...] = ()
    split: str = "val"
    at: int = 0
    draws: int = 400
    out: Path = Path("runs/losses")


def main(arguments: list[str]) -> int:
    import tyro

    options = tyro.cli(Options, prog="benchmarks/losses.py", description=__doc__, args=arguments)
    bench = Bench(options)
    for seed in options.seeds:  # the seeds outside: a table of what is done compares the same seeds
        for loss in options.losses:
            bench.train(loss, seed)
    print(bench.tables())
    return 0


class Bench:
    """Trains, remembers, and compares."""

    def __init__(self, options: Options) -> None:
        from train.config import DataConfig, TrainConfig
        from train.examples import open_examples

        self.options = options
        self.base: TrainConfig = base_config(options)
        for loss in options.losses:
            loss_config(loss)  # a wrong name is said before anything is trained
        self.file = options.out / "results.json"
        self.results = self._open()
        data: DataConfig = self.base.data
        self.selection = open_examples(data)
        self.val = open_examples(dataclasses.replace(data, split=options.split))
        classes = self.val.labels.classes
        for name in options.classes:
            if name not in classes:
                raise unknown("class", name, classes)
        self.columns = [c for c, name in enumerate(classes) if name in (options.classes or classes)]
        self.target, self.mask = (
            array[:, self.columns] for array in (self.val.labels.target, self.val.labels.mask)
        )
        positives = (self.target * self.mask).sum(axis=0)
        self.at = options.at or (50 if positives.min() >= 50 else 10)
        self.cache: dict[tuple[str, int], Floats] = {}

    def _open(self) -> dict[str, Any]:
        """What was done before, which must have been done with the same settings."""
        from train.config import TrainConfig
        from train.config_files import flatten, to_dict

        def shared(config: TrainConfig) -> dict[str, Any]:
            free = ("loss.", "seed", "out", "overwrite", "resume")
            return {key: value for key, value in flatten(to_dict(config)).items() if not key.startswith(free)}

        settings = shared(self.base)
        self.options.out.mkdir(parents=True, exist_ok=True)
        if not self.file.is_file():
            return {"settings": settings, "runs": {}}
        found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        before = (
            shared(TrainConfig()) | found["settings"]
        )  # a setting that is newer than the file had its default
        for key, value in settings.items():
            if before[key] != value:
                raise InputError(
                    f"{self.file} holds results with {key} {before[key]}, but it is now {value}; give another --out"
                )
        return found

    def logits(self, loss: str, seed: int) -> Path:
        return self.options.out / f"{loss.replace(':', '_')}-{seed}.npz"

    def train(self, loss: str, seed: int) -> None:
        """Train one loss with one seed, unless that was done, and keep its logits."""
        from train.divergence import Diverged
        from train.evaluation import predict
        from train.loop import fit
        from train.publish import load_best
        from train.selection_fit import selection_logits

        key = f"{loss}/{seed}"
        if key in self.results["runs"]:
            return
        print(f"{key}: training", file=sys.stderr, flush=True)
        folder = self.options.out / "run"
        config = dataclasses.replace(self.base, loss=loss_config(loss), seed=seed, out=folder, overwrite=True)
        try:
            result = fit(config)
        except Diverged as error:
            self.results["runs"][key] = {"failed": str(error)}
        else:
            import torch

            model, _, _ = load_best(folder)
            chosen = selection_logits(model, self.selection)
            device = next(model.parameters()).device
            everything = np.arange(len(self.val.labels), dtype=np.int64)
            with torch.no_grad():
                judged = predict(model, self.val.cache.pixels, everything, device)
            np.savez(self.logits(loss, seed), selection=chosen, val=judged)
            self.results["runs"][key] = {
                "epoch": result.best_epoch,
                "selection_map": result.best_map,
                "seconds": round(result.seconds, 1),
            } | dict(zip(FIGURES, self.figures(*self.read(loss, seed)).tolist(), strict=True))
        partial = self.file.with_suffix(".part")
        partial.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)
        shutil.rmtree(folder)

    def read(self, loss: str, seed: int) -> tuple[Logits, Logits]:
        """Logits and calibrated logits float32[N, C] of one run on the evaluation split, of the wanted classes."""
        from eval.calibration import fit_platt

        stored = np.load(self.logits(loss, seed))
        labels, index, columns = self.selection.labels, self.selection.selection, self.columns
        line = fit_platt(
            stored["selection"][:, columns], labels.target[index][:, columns], labels.mask[index][:, columns]
        )
        logit = stored["val"][:, columns]
        return logit, (logit * line.scale + line.bias).astype(np.float32)

    def figures(self, logit: Logits, calibrated: Logits, rows: npt.NDArray[np.int64] | None = None) -> Floats:
        """float64[F]: each of `FIGURES` over all images or over `rows` (with repetitions)."""
        from eval.calibration import reliability, sigmoid
        from eval.metrics import precision_at, ranked_average_precision, tail_area, tailacc
        from eval.ranking import rankings

        rows = np.arange(len(logit), dtype=np.int64) if rows is None else rows
        target, mask = self.target[rows], self.mask[rows]
        ranked = list(rankings(logit[rows], target, mask))
        tails, errors = [], []
        for values in (logit[rows], calibrated[rows]):
            curve = tailacc(list(rankings(values, target, mask)))
            tails.append(float(tail_area(curve.mean, curve.position)))
            score = sigmoid(values)
            found = [reliability(score[:, c], target[:, c], mask[:, c]).ece for c in range(len(ranked))]
            errors.append(float(np.nanmean(found)))
        return np.array(
            [
                np.nanmean([ranked_average_precision(r) for r in ranked]),
                *tails,
                np.nanmean([precision_at(r, self.at) for r in ranked]),
                *errors,
                np.nanmean([r.above(0.0) / r.positives if r.positives else np.nan for r in ranked]),
            ]
        )

    def drawn(self, loss: str, seed: int) -> Floats:
        """float64[B, F]: the figures of one run on B draws of the images, the same draws for every run."""
        key = (loss, seed)
        if key not in self.cache:
            logits = self.read(loss, seed)
            rng = np.random.default_rng(0)
            count = len(self.val.labels)
            self.cache[key] = np.stack(
                [self.figures(*logits, rng.integers(count, size=count)) for _ in range(self.options.draws)]
            )
        return self.cache[key]

    def tables(self) -> str:
        """All that was measured, in Markdown."""
        titles = [title.replace("@k", f"@{self.at}") for title in FIGURES.values()]
        head = [f"| loss | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
        lines = [*head]
        done: dict[str, Floats] = {}
        failed = []
        for loss in self.options.losses:
            runs = [self.results["runs"][f"{loss}/{seed}"] for seed in self.options.seeds]
            failed += [
                f"{loss}/{s}: {r['failed']}"
                for s, r in zip(self.options.seeds, runs, strict=True)
                if "failed" in r
            ]
            if any("failed" in run for run in runs):
                continue
            values = done[loss] = np.array([[run[name] for name in FIGURES] for run in runs])
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(titles), np.nan)
            cells = [
                cell(m, s, name) for m, s, name in zip(values.mean(axis=0), spread, FIGURES, strict=True)
            ]
            lines.append(f"| {loss} | {' | '.join(cells)} |")
        names = [self.val.labels.classes[c] for c in self.columns]
        text = [
            f"{self.base.model.backbone} at {self.base.data.size} px, {self.base.schedule.epochs} epochs, seeds "
            f"{', '.join(map(str, self.options.seeds))}; {len(self.val.labels)} images of {self.val.labels.name}; "
            f"mean over {len(names)} classes: {', '.join(names)}.",
            "\nIn percent (yes per positive: a ratio), mean ± standard deviation over the seeds:\n",
            *lines,
        ]
        for reference in ("bce", "asl"):
            if reference in done and len(done) > 1:
                text += [
                    f"\nDifference to {reference}, with its 95 % interval; bold where that excludes 0:\n",
                    *head,
                ]
                text += [self._difference(loss, reference, done) for loss in done if loss != reference]
        text.append(
            f"\nIntervals: percentiles of {self.options.draws} draws, with replacement, of the images and of the "
            "seeds, both the same for the two losses; the spread of the few seeds is widened by sqrt(n / (n - 1))."
        )
        return "\n".join([*text, *failed])

    def _difference(self, loss: str, reference: str, done: dict[str, Floats]) -> str:
        seeds = self.options.seeds
        gap = np.stack([self.drawn(loss, s) - self.drawn(reference, s) for s in seeds])  # [seeds, B, F]
        rng = np.random.default_rng(1)
        n, draws = len(seeds), gap.shape[1]
        picks = rng.integers(n, size=(draws, n))
        picked = np.stack([gap[picks[b], b].mean(axis=0) for b in range(draws)])
        center = gap.mean(axis=0)
        samples = center + math.sqrt(n / (n - 1) if n > 1 else 1) * (picked - center)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a figure that no draw has stays NaN
            low, high = np.nanquantile(samples, [0.025, 0.975], axis=0)
        middle = (done[loss] - done[reference]).mean(axis=0)
        cells = []
        for name, m, a, b in zip(FIGURES, middle, low, high, strict=True):
            factor, digits = scale(name)
            values = (f"{factor * x:+.{digits}f}" for x in (m, a, b))
            text = "n/a" if math.isnan(m) else "{} [{}, {}]".format(*values)
            cells.append(f"**{text}**" if a > 0 or b < 0 else text)
        return f"| {loss} | {' | '.join(cells)} |"


def scale(name: str) -> tuple[float, int]:
    """Factor and digits after the point of a figure in the tables."""
    return (1, 2) if name == "yes" else (100, 1)


def cell(mean: float, spread: float, name: str) -> str:
    factor, digits = scale(name)
    text = "n/a" if math.isnan(mean) else f"{factor * mean:.{digits}f}"
    return text if math.isnan(spread) else f"{text} ± {factor * spread:.{digits}f}"


def base_config(options: Options) -> Any:
    """The configuration that all runs share."""
    from train.config import TrackingConfig
    from train.presets import preset

    base = preset("baseline" if options.data else "demo")

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, **given(root=options.data, size=options.size)),
        model=dataclasses.replace(base.model, **given(backbone=options.backbone, weights=options.weights)),
        schedule=dataclasses.replace(base.schedule, **given(epochs=options.epochs)),
        optimizer=dataclasses.replace(
            base.optimizer, **given(lr=options.lr, backbone_lr=options.backbone_lr)
        ),
        tracking=TrackingConfig(enabled=False),
    )


def loss_config(text: str) -> Any:
    """ "tail:tail_power=1:queue=1024" -> its LossConfig."""
    from train.config import LossConfig
    from train.config_files import override
    from train.losses import LOSSES

    name, *settings = text.split(":")
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    values: dict[str, Any] = {"name": name}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            values[key] = json.loads(value)
        except ValueError as error:
            raise InputError(f"a setting of a loss is NAME=NUMBER, got '{setting}'") from error
    return override(LossConfig(), values, f"--losses {text}")


if __name__ == "__main__":
    sys.exit(run(main))
