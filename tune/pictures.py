"""The pictures of a search: what mattered, where the trials lay, mAP against cost, and how the best one grew.

    from tune.pictures import draw_pictures
    draw_pictures(rows, Path("runs/tune/first"))    # importance.png, parallel.png, pareto.png, progress.png

Colours are those of Okabe & Ito and of matplotlib's cividis, which colour-blind readers can tell apart; what a
colour says, a shape or a place says too.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune.rows import TrialRow

# Fewer trials say nothing of a parameter's importance.
LEAST_TRIALS = 6
_DPI = 120  # 8.4 inches are 1008 pixels
_WIDTH = 8.4
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
# State: colour and marker.
_STATES = {
    "completed": (_BLUE, "o"),
    "pruned": (_ORANGE, "v"),
    "unfinished": (_GREY, "s"),
    "running": (_GREEN, "D"),
}
# The part of cividis, light to dark, that stands out from white paper.
_MAP_COLOURS, _LIGHTEST = "cividis_r", 0.15


def draw_pictures(rows: Sequence[TrialRow], folder: Path) -> list[Path]:
    """Draw what the rows allow into PNG files of about 1000 pixels, and return those that were written.

    Args:
        rows: the trials, in the order in which they were started.
        folder: is there already. importance.png says so where there are too few trials; parallel.png and
            progress.png need a trial with a finished epoch, pareto.png one with a known cost.
    """
    found = known(rows)
    pictures = {"importance.png": _importance}
    if found:
        pictures |= {"parallel.png": _parallel, "progress.png": _progress}
    if pareto_front(rows):
        pictures["pareto.png"] = _pareto
    paths = []
    for name, draw in pictures.items():
        figure = _figure()
        draw(figure, rows)
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=_DPI)
    return paths


def known(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials with a finished epoch that did not fail."""
    return [row for row in rows if math.isfinite(row.best_map) and row.state != "failed"]


def varying(rows: Sequence[TrialRow]) -> dict[str, list[Any]]:
    """The settings that every trial has and that are not the same in all: name -> a value for each trial."""
    names = [name for name in (rows[0].point if rows else ()) if all(name in row.point for row in rows)]
    columns = {name: [row.point[name] for row in rows] for name in names}
    return {name: values for name, values in columns.items() if len(set(values)) > 1}


def importances(rows: Sequence[TrialRow]) -> dict[str, float]:
    """The share of each setting in what makes trials differ, largest first, together 1; {} for too few trials.

    fANOVA (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance") on the *rank* of the
    best mAP: a pruned trial's mAP is of an early epoch, of which the order alone is worth something. On 24
    simulated trials of four settings it named the strongest in 12 of 12, PED-ANOVA, which looks at the best few, in
    7 at most. Settings that only some trials have, those of one loss, are left out.
    """
    counted = known(rows)
    columns = varying(counted)
    alike = len({row.best_map for row in counted}) < 2
    if len(counted) < LEAST_TRIALS or not columns or alike:
        return {}
    import optuna

    distributions = {name: _distribution(values) for name, values in columns.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    order = sorted(row.best_map for row in counted)
    for place, row in enumerate(counted):
        params = {name: columns[name][place] for name in columns}
        # The same mAP, the same rank.
        value = float(order.index(row.best_map))
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    # Half of Optuna's trees, and shallow ones: 1 s for 1,000 trials instead of minutes, and the same shares.
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=6, seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    found = {name: float(share) for name, share in shares.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1])) if any(found.values()) else {}


def _distribution(values: Sequence[Any]) -> Any:
    import optuna

    if not _is_number(values):
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    return optuna.distributions.FloatDistribution(min(values), max(values), log=_is_log(values))


def _is_number(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_log(values: Sequence[float]) -> bool:
    """Whether the numbers are spread over more than a factor of three: rates are drawn log-uniformly."""
    return min(values) > 0 and max(values) > 3 * min(values)


def pareto_front(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials that no other beats in both mAP and serving cost, cheapest first; of equal ones the first.

    Trials that failed, and those without mAP or cost, do not count.
    """
    counted = [row for row in known(rows) if math.isfinite(row.cost)]
    front: list[TrialRow] = []
    for row in sorted(counted, key=lambda row: (row.cost, -row.best_map)):
        if not front or row.best_map > front[-1].best_map:
            front.append(row)
    return front


def _figure() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def _importance(figure: Any, rows: Sequence[TrialRow]) -> None:
    shares, count = importances(rows), len(known(rows))
    if not shares:
        figure.set_size_inches(_WIDTH, 1.2)
        why = (
            f"it takes {LEAST_TRIALS} trials with a finished epoch, and there are {count}"
            if count < LEAST_TRIALS
            else "no setting varies, or all trials gave the same mAP"
        )
        figure.text(
            0.5, 0.5, f"The importance of the settings is not known:\n{why}.", ha="center", va="center"
        )
        return
    figure.set_size_inches(_WIDTH, 1.5 + 0.42 * len(shares))
    axes = figure.add_subplot()
    bars = axes.barh(list(shares), [100 * share for share in shares.values()], color=_BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.0f %%", padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of what makes trials rank differently (fANOVA), %")
    axes.set_title(f"Importance of each setting, from {count} trials", loc="left", fontsize=11)
    _plain(axes)
    axes.grid(visible=False, axis="y")
    if count < 10 * len(shares):
        figure.supxlabel(
            "Few trials for so many settings: small shares are noise.", fontsize=9, color="#444444"
        )


def _norm(rows: Sequence[TrialRow]) -> Any:
    """Colours from the lowest to the highest mAP that is not an outlier below: early pruned trials would take all."""
    from matplotlib.colors import Normalize

    maps = sorted(row.best_map for row in rows)
    low, high = maps[len(maps) // 10], maps[-1]
    return Normalize(low, high if high > low else low + 1e-3)


def _parallel(figure: Any, rows: Sequence[TrialRow]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    shown = known(rows)
    columns: dict[str, list[Any]] = varying(shown) or dict(_all_settings(shown))
    columns["best mAP"] = [row.best_map for row in shown]
    places = [_Axis(values) for values in columns.values()]
    shades = [_LIGHTEST + (1 - _LIGHTEST) * i / 255 for i in range(256)]
    norm, colours = _norm(shown), ListedColormap(colormaps[_MAP_COLOURS](shades))
    axes = figure.add_subplot()
    # Best last, on top.
    for trial in sorted(range(len(shown)), key=lambda i: shown[i].best_map):
        heights = [place.spread(trial) for place in places]
        pruned = shown[trial].state != "completed"
        axes.plot(
            *_smooth(heights),
            color=colours(norm(shown[trial].best_map)),
            alpha=0.5 if pruned else 0.95,
            linewidth=1.1 if pruned else 1.9,
            linestyle=(0, (4, 2)) if pruned else "solid",
        )
    for x, place in enumerate(places):
        axes.axvline(x, color="#222222", linewidth=1)
        for height, label in place.ticks():
            axes.annotate(
                label,
                (x, height),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=9,
                va="center",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.9},
            )
    figure.set_size_inches(max(_WIDTH, 1.6 * len(places)), 4.8)
    axes.set_xlim(-0.1, len(places) - 1 + 0.35)
    axes.set_ylim(-0.1, 1.1)
    axes.set_xticks(range(len(places)), list(columns), fontsize=10)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, fraction=0.03, pad=0.02, extend="min")
    bar.set_label("best selection mAP (VOC 2010)")
    bar.outline.set_visible(False)
    axes.set_title("The settings of each trial, and its best mAP", loc="left", fontsize=11, pad=10)
    figure.supxlabel(
        "A line for each trial; dashed and faint: it did not complete.", fontsize=9, color="#444444"
    )


def _all_settings(rows: Sequence[TrialRow]) -> Mapping[str, list[Any]]:
    """Where nothing varies: what all trials have."""
    return {
        name: [row.point[name] for row in rows]
        for name in rows[0].point
        if all(name in r.point for r in rows)
    }


class _Axis:
    """One vertical axis of the parallel coordinates, from 0 at its bottom to 1 at its top."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._values, self._numeric = values, _is_number(values)
        self._distinct = sorted(set(values)) if self._numeric else sorted(set(values), key=str)
        self._log = self._numeric and _is_log(values)

    def _height(self, value: Any) -> float:
        low, high = self._distinct[0], self._distinct[-1]
        if low == high:
            return 0.5
        if not self._numeric:
            return self._distinct.index(value) / (len(self._distinct) - 1)
        if self._log:
            return math.log(value / low) / math.log(high / low)
        return float((value - low) / (high - low))

    def spread(self, trial: int) -> float:
        """The height of a trial; trials of the same value lie a little apart."""
        value = self._values[trial]
        same = [i for i, other in enumerate(self._values) if other == value]
        room = min(0.14, 0.5 / len(self._distinct))
        return self._height(value) + room * ((same.index(trial) + 0.5) / len(same) - 0.5)

    def ticks(self) -> list[tuple[float, str]]:
        """(height, label): every value where they are few and apart, or five between the ends."""
        if not self._numeric:
            return [(self._height(name), str(name)) for name in self._distinct]
        values: list[float] = self._distinct
        heights = [self._height(value) for value in values]
        if len(values) > 5 or any(b - a < 0.08 for a, b in itertools.pairwise(heights)):
            low, high = values[0], values[-1]
            heights = [i / 4 for i in range(5)]
            values = [low * (high / low) ** h if self._log else low + h * (high - low) for h in heights]
        return [(height, f"{value:.3g}") for height, value in zip(heights, values, strict=True)]


def _smooth(heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """x and y of a curve through the heights that leaves every axis level, so that one can follow a line."""
    x, y = [0.0], [heights[0]]
    for place in range(len(heights) - 1):
        for i in range(1, 21):
            part = i / 20
            blend = part * part * (3 - 2 * part)
            x.append(place + part)
            y.append(heights[place] + blend * (heights[place + 1] - heights[place]))
    return x, y


def _by_state(axes: Any, rows: Sequence[TrialRow], x: Mapping[str, float]) -> None:
    """A point for each trial at x[trial_id] and its mAP, with its interval; the shape is its state."""
    for state, (colour, marker) in _STATES.items():
        these = [row for row in rows if row.state == state]
        if not these:
            continue
        maps = [row.best_map for row in these]
        low = [max(0.0, row.best_map - row.map_low) if math.isfinite(row.map_low) else 0.0 for row in these]
        high = [
            max(0.0, row.map_high - row.best_map) if math.isfinite(row.map_high) else 0.0 for row in these
        ]
        axes.errorbar(
            [x[row.trial_id] for row in these],
            maps,
            yerr=[low, high],
            fmt=marker,
            color=colour,
            markersize=6,
            elinewidth=0.8,
            alpha=0.9 if state == "completed" else 0.6,
            label=f"{state} ({len(these)})",
        )


def _pareto(figure: Any, rows: Sequence[TrialRow]) -> None:
    front = pareto_front(rows)
    shown = [row for row in known(rows) if math.isfinite(row.cost)]
    axes = figure.add_subplot()
    _by_state(axes, shown, {row.trial_id: row.cost for row in shown})
    costs, maps = [row.cost for row in front], [row.best_map for row in front]
    axes.plot(
        costs, maps, color="#111111", linewidth=1.4, drawstyle="steps-post", label="Pareto front", zorder=1
    )
    axes.scatter(costs, maps, s=150, facecolors="none", edgecolors="#111111", linewidths=1.4, zorder=4)
    every = [row.cost for row in shown]
    if _is_log(every):
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.set_xlabel("serving cost, ms of one core an image")
    axes.set_ylabel("best selection mAP (VOC 2010), 95 % interval")
    axes.set_title("mAP against serving cost", loc="left", fontsize=11)
    # Above the axes, where it covers no trial.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, fontsize=9)
    _plain(axes)
    # By number: names beside the points would run into each other. Left above a point of the front is nothing.
    lines = []
    for number, row in enumerate(front, start=1):
        where = {"xytext": (-8, 7), "textcoords": "offset points", "ha": "right", "fontsize": 11}
        axes.annotate(str(number), (row.cost, row.best_map), weight="bold", **where)
        name = f"{row.point.get('backbone', '')} {row.point.get('loss', '')}".strip()
        lines.append(f"{number}  {row.trial_id}  {name}: mAP {row.best_map:.3f} at {row.cost:.3g} ms")
    figure.set_size_inches(_WIDTH, 4.6 + 0.19 * len(lines))
    figure.supxlabel("\n".join(lines), fontsize=9, x=0.08, ha="left", linespacing=1.5)


def _progress(figure: Any, rows: Sequence[TrialRow]) -> None:
    from matplotlib.ticker import MaxNLocator

    number = {row.trial_id: float(place) for place, row in enumerate(rows, start=1)}
    axes = figure.add_subplot()
    _by_state(axes, known(rows), number)
    best, steps = -math.inf, []
    for row in rows:
        if known([row]):
            best = max(best, row.best_map)
        steps.append(best if math.isfinite(best) else math.nan)
    axes.plot(
        range(1, len(rows) + 1),
        steps,
        color="#111111",
        linewidth=1.4,
        drawstyle="steps-post",
        label="best so far",
    )
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        floor = axes.get_ylim()[0]
        axes.scatter(
            [number[row.trial_id] for row in failed],
            [floor] * len(failed),
            marker="x",
            color=_RED,
            s=45,
            clip_on=False,
            zorder=5,
            label=f"failed ({len(failed)}), at the bottom",
        )
        axes.set_ylim(bottom=floor)
    axes.set_xlim(0.3, len(rows) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial, in the order in which they were started")
    axes.set_ylabel("best selection mAP (VOC 2010)")
    axes.set_title("The best trial so far, and each trial with its 95 % interval", loc="left", fontsize=11)
    _plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
