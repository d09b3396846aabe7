"""Averaging the weights of runs that differ in their seed."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import InputError
from eval.metrics import mean_average_precision
from train import checkpoint
from train.config import TrainConfig
from train.config_files import flatten, read_config, to_dict
from train.examples import Examples, open_examples
from train.publish import load_best
from train.selection_fit import selection_logits

# What averaged runs may differ in: how they learnt, not what they are.
_FREE_PREFIXES = ("loss.", "optimizer.", "schedule.", "augment.", "tracking.")
_FREE = {
    *(
        "out",
        "overwrite",
        "resume",
        "seed",
        "ema",
        "batch_size",
        "accumulate",
        "threads",
        "precision",
        "compile",
    ),
    *("channels_last", "sync_norms", "checkpoint_minutes", "model.dropout", "model.drop_path"),
    *("model.gradient_checkpointing", "data.cache", "data.train_size"),
}


@dataclass(frozen=True, slots=True)
class Soup:
    """What came of averaging.

    Attributes:
        members: the runs' folders, each with its selection mAP.
        taken: those that are in the average.
        map: selection mAP (VOC 2010) of the average.
    """

    members: tuple[tuple[Path, float], ...]
    taken: tuple[Path, ...]
    map: float


def cook(folders: Sequence[Path], out: Path, greedy: bool = False) -> Soup:
    """Average the best weights of the runs in `folders` into `out`, which can be exported like a run.

    Batch-norm statistics are averaged with the weights.

    Args:
        folders: two runs or more.
        out: a new folder.
        greedy: take a run in only where the average's selection mAP rises, the best first.

    Raises:
        InputError: fewer than two runs, runs that do not fit together, or `out` exists.
    """
    if len(set(folders)) < 2:
        raise InputError(f"a soup needs at least two different runs, got {len(set(folders))}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty; choose another folder")
    configs = [read_config(folder / checkpoint.CONFIG, TrainConfig()) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _check_fits(folders[0], configs[0], folder, config)
    loaded = [load_best(folder) for folder in folders]
    model, about, _ = loaded[0]
    # Copies: the first model is given the weights to judge in turn.
    weights = [{key: value.clone() for key, value in one.state_dict().items()} for one, _, _ in loaded]
    examples = open_examples(configs[0].data)
    if examples.labels.fingerprint() != about["data_fingerprint"]:
        raise InputError(f"the data have changed since {folders[0]} was trained: another fingerprint")
    flip = configs[0].flip_test

    def worth(chosen: Sequence[int]) -> float:
        return _selection_map(model, _mean([weights[i] for i in chosen]), examples, flip)

    alone = [worth([i]) for i in range(len(folders))]
    taken = list(range(len(folders)))
    best = worth(taken)
    if greedy:
        order = sorted(range(len(folders)), key=lambda i: -alone[i])
        taken, best = order[:1], alone[order[0]]
        for i in order[1:]:
            if (value := worth([*taken, i])) > best:
                taken, best = [*taken, i], value
    members = tuple(zip(folders, alone, strict=True))
    soup = Soup(members, tuple(folders[i] for i in taken), best)
    _write(soup, out, folders[0], _mean([weights[i] for i in taken]), about)
    return soup


def _check_fits(folder: Path, config: TrainConfig, other_folder: Path, other: TrainConfig) -> None:
    one, two = flatten(to_dict(config)), flatten(to_dict(other))
    for key, value in one.items():
        if key not in _FREE and not key.startswith(_FREE_PREFIXES) and two[key] != value:
            raise InputError(
                f"{key} is {value} in {folder} but {two[key]} in {other_folder}: their weights cannot be averaged"
            )


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating tensor; counters are the first one's."""
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


def _selection_map(model: nn.Module, weights: dict[str, Tensor], examples: Examples, flip: bool) -> float:
    model.load_state_dict(weights)
    return mean_average_precision(examples.selection_ap(selection_logits(model, examples, flip)))[0]


def _write(soup: Soup, out: Path, first: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in (checkpoint.CONFIG, checkpoint.SELECTION, checkpoint.ENVIRONMENT):
        shutil.copyfile(first / name, out / name)
    # It is no run of MLflow's: its members are.
    state = about | {"model": weights, "map": soup.map, "run_id": ""}
    checkpoint.save(out / checkpoint.BEST, state)
    result = {"map": soup.map, "taken": [str(folder) for folder in soup.taken]}
    result["members"] = {str(folder): value for folder, value in soup.members}
    (out / checkpoint.RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
