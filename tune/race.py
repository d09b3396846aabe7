"""The race: the best trials once more with fresh seeds, so that noise does not choose the winner.

The best of many trials is partly the luckiest. Its setting is therefore judged by trainings whose seeds had no part in
the choice, all on the same images: a setting is worse where the paired bootstrap (images and seeds drawn anew) says so,
and of those that cannot be told from the best, the one that costs least to serve wins.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from train import checkpoint
from train.selection_scores import SelectionScores, compare_map, read_selection_scores
from tune.points import architecture, shown
from tune.rows import TrialRow, best_first
from tune.sampling import Costs

RACE = "race.json"
# Milliseconds of one core an image, of a point.
CostOf = Callable[[Mapping[str, Any]], float]
# Costs closer than this are the same: the measurement itself repeats to a few percent.
_SAME_COST = 0.05


@dataclass(frozen=True, slots=True)
class Runner:
    """A finalist: the trial it comes from, its full point, and the folders of its fresh runs."""

    trial_id: str
    point: Mapping[str, Any]
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a finalist came in.

    Attributes:
        trial_id: of the trial that it comes from.
        point: its settings.
        seeds: how many fresh seeds finished.
        map: the mean of their selection mAPs.
        difference, low, high: of the leader's mean and its own, with the 95 % interval; 0 for the leader.
        cost: milliseconds of one core an image, NaN where no tie asked for it.
        verdict: "wins", "tied" (cannot be told from the leader), or "worse".
        folder: its fresh run with the best selection mAP.
    """

    trial_id: str
    point: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 0
    map: float = math.nan
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    cost: float = math.nan
    verdict: str = "worse"
    folder: str = ""


def finalists(rows: Sequence[TrialRow], count: int) -> list[TrialRow]:
    """The best trials that finished an epoch and did not fail."""
    fit = [row for row in rows if row.state in ("completed", "pruned") and math.isfinite(row.best_map)]
    return best_first(fit)[:count]


def race_points(
    chosen: Sequence[TrialRow], points: Mapping[str, Mapping[str, Any]], seed: int, seeds: int
) -> list[dict[str, Any]]:
    """A point for each finalist and fresh seed; "finalist" names the trial."""
    return [
        {**points[row.trial_id], "seed": (seed + 1 + number) % 2**31, "finalist": row.trial_id}
        for row in chosen
        for number in range(seeds)
    ]


def judge(runners: Sequence[Runner], costs: CostOf) -> list[Standing]:
    """The standings, the winner first.

    Args:
        runners: finalists with at least one finished run each.
        costs: asked only where a tie is to be broken between architectures.
    """
    scores = [[read_selection_scores(f / checkpoint.SELECTION_SCORES) for f in r.folders] for r in runners]
    means = [float(np.mean([s.map() for s in runs])) for runs in scores]
    lead = int(np.argmax(means))
    standings = [
        _standing(runners[i], scores[i], means[i], scores[lead], i == lead) for i in range(len(runners))
    ]
    tied = [i for i, standing in enumerate(standings) if standing.verdict == "tied" or i == lead]
    prices = [math.nan] * len(runners)
    winner = lead
    if len({architecture(runners[i].point) for i in tied}) > 1:
        for i in tied:
            prices[i] = costs(runners[i].point)
        cheapest = min(prices[i] for i in tied)
        cheap = [i for i in tied if prices[i] <= cheapest * (1 + _SAME_COST)]
        winner = max(cheap, key=lambda i: means[i])
    final = [
        replace(standing, cost=prices[i], verdict="wins" if i == winner else standing.verdict)
        for i, standing in enumerate(standings)
    ]
    return sorted(final, key=lambda s: (s.verdict != "wins", -s.map))


def _standing(
    runner: Runner, scores: list[SelectionScores], mean: float, leader: list[SelectionScores], leads: bool
) -> Standing:
    best = max(range(len(scores)), key=lambda i: scores[i].map())
    found = Standing(
        trial_id=runner.trial_id,
        point=shown(runner.point),
        seeds=len(scores),
        map=mean,
        verdict="tied",
        folder=str(runner.folders[best]),
    )
    if leads:
        return found
    paired = compare_map(leader, scores)
    verdict = "worse" if paired.verdict > 0 else "tied"
    return replace(found, difference=paired.difference, low=paired.low, high=paired.high, verdict=verdict)


def write_race(path: Path, standings: Sequence[Standing]) -> None:
    """The standings as JSON, the winner first; what was not measured is null."""
    content = [
        {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(s).items()
        }
        for s in standings
    ]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def describe_race(standings: Sequence[Standing], images: int) -> list[str]:
    """The standings as lines for the terminal."""
    lines = []
    for standing in standings:
        settings = " ".join(str(standing.point[key]) for key in ("backbone", "loss") if key in standing.point)
        text = f"race       {standing.verdict:<5} {standing.map:.4f} over {standing.seeds} fresh seeds: {settings} "
        text += f"(trial {standing.trial_id})"
        if standing.high or standing.low:
            text += (
                f", below the leader by {standing.difference:.4f} [{standing.low:+.4f}, {standing.high:+.4f}]"
            )
        if math.isfinite(standing.cost):
            text += f", {standing.cost:.2f} ms of a core an image"
        lines.append(text)
    winner = standings[0]
    if math.isfinite(winner.cost) and any(s.map > winner.map for s in standings[1:]):
        lines.append(
            f"note       the {images} selection images cannot tell the tied ones apart; the one that costs least to "
            "serve wins"
        )
    return lines


def costs_of(known: Costs, measure: CostOf) -> CostOf:
    """Costs by point: those that are known, the others measured once for each architecture."""
    found = dict(known)

    def cost(point: Mapping[str, Any]) -> float:
        name = architecture(point)
        if name not in found:
            found[name] = float(measure(point))
        return found[name]

    return cost
