"""The end of a search: the winner exported, registered and perhaps promoted, and the summary for the person who
started it."""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from train.publish import export_run, register_model
from tune.card import write_card
from tune.pictures import draw_pictures
from tune.promotion import promote
from tune.race import RACE
from tune.rows import TABLE, TrialRow, best_first
from tune.run import SETTINGS, Outcome
from tune.space import SearchConfig
from tune.table import build_table

INTERRUPTED = 130


def conclude(config: SearchConfig, outcome: Outcome) -> int:
    """Print the trials, export and register the winner, close the search's record, and return the exit code."""
    trials = [row for row in outcome.rows if "finalist" not in row.point]
    Console().print(build_table(trials, "trials, best first (selection mAP, VOC 2010)"))
    pictures = draw_pictures(trials, outcome.out)
    files = [outcome.out / name for name in (TABLE, SETTINGS, RACE)]
    files = [path for path in [*files, *pictures] if path.is_file()]
    if outcome.interrupted:
        _close(outcome, "KILLED", files)
        print(
            f"interrupted; go on with: python tune/search.py --out {outcome.out} --resume "
            f"(settings: {outcome.out / SETTINGS})",
            file=sys.stderr,
        )
        return INTERRUPTED
    if outcome.winner is None:
        _close(outcome, "FAILED", files)
        print(f"error: no trial finished an epoch; see {outcome.out / 'ray'}/*/error.txt", file=sys.stderr)
        return 1
    for line in describe_start(outcome):
        print(line)
    exported = export_run(outcome.winner, outcome.out / "model.onnx")
    print(
        f"best       {exported.info.name}: selection mAP {exported.selection_map:.4f} (run {outcome.winner})"
    )
    print(f"model      {exported.path}, largest |logit difference| to torch {exported.parity.difference:.1e}")
    card = write_card(exported, outcome.winner, describe_choice(outcome))
    print(f"card       {card}")
    name = config.search.register
    registered = bool(name and exported.info.run_id)
    if registered:
        version = register_model(exported, name, "")
        promoted = promote(name, version, config.search.promote, exported.examples)
        print(f"registered models:/{name}/{version}")
        print(promoted.describe())
    _close(outcome, "FINISHED", [*files, card])
    if outcome.parent:
        print(f"MLflow     {outcome.parent.page()}")
    print(f"pictures   {', '.join(str(path) for path in pictures) or 'none: too few trials'}")
    print("next       python serve/server.py" + ("" if registered else f" --model {exported.path}"))
    return 0


def describe_choice(outcome: Outcome) -> str:
    """How the winner was chosen, as a sentence of its card."""
    trials = sum("finalist" not in row.point for row in outcome.rows)
    of = f"{trials} trials of a search" if trials > 1 else "one trial"
    if not outcome.standings:
        return f"The model is the best of {of} on the same images."
    seeds, finalists = outcome.standings[0].seeds, len(outcome.standings)
    return (
        f"The settings are those of the {finalists} best of {of} that won on {seeds} fresh seeds each; the model is "
        "the best of the winner's seeds on the same images."
    )


def describe_start(outcome: Outcome) -> list[str]:
    """How long the search and its trials took to begin, as a line for the terminal."""
    steps = [row.first_step for row in outcome.rows if math.isfinite(row.first_step)]
    asked, ready = outcome.starts
    if not steps or not math.isfinite(ready):
        return []
    return [
        f"start-up   {asked:.1f} s until the search began to start trials, {ready:.1f} s until the first one's process "
        f"was ready; {statistics.median(steps):.1f} s (median; at most {max(steps):.1f}) from a trial's start to its "
        "first step"
    ]


def _close(outcome: Outcome, status: str, files: Sequence[Path]) -> None:
    """End the MLflow run of the search with its best trial's figures and its files."""
    if outcome.parent is None:
        return
    best = next((row for row in best_first(outcome.rows) if math.isfinite(row.best_map)), None)
    outcome.parent.finish(status, _figures(best), _tags(outcome, best), files)


def _figures(best: TrialRow | None) -> dict[str, float]:
    if best is None:
        return {}
    found = {"best/map": best.best_map, "best/map_low": best.map_low, "best/map_high": best.map_high}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _tags(outcome: Outcome, best: TrialRow | None) -> dict[str, str]:
    tags = {"trials": str(len(outcome.rows)), "interrupted": str(outcome.interrupted).lower()}
    if best:
        tags |= {"best.trial_id": best.trial_id} | {
            f"best.{key}": str(value) for key, value in best.point.items()
        }
    if outcome.standings:
        tags["race.winner"] = outcome.standings[0].trial_id
    return tags
