"""Which point is tried next: one searcher over an Optuna study for grid, random and TPE.

Ray's own `OptunaSearch` can neither take a space with branches (the settings of the chosen loss) together with
earlier trials, nor enumerate a grid, so this asks and tells the study itself.
"""

import json
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tune.points import POINT_TAG, architecture
from tune.space import Axis, Choice, SearchConfig

# Serving cost of an architecture in milliseconds, by `architecture(point)`.
Costs = Mapping[str, float]


def _holds(axis: Axis, value: Any) -> bool:
    """Whether the value lies on the axis."""
    if isinstance(axis, Choice):
        return value in axis.values
    return isinstance(value, int | float) and axis.low <= value <= axis.high


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.values)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


class Points(Searcher):  # type: ignore[misc]
    """Suggests points, and learns from the trials where the sampler does.

    Args:
        config: the search.
        costs: of every architecture in the space, where the objective asks for the cost.
        earlier: points of earlier searches with their best selection mAP; those outside the space are left out.
    """

    def __init__(
        self, config: SearchConfig, costs: Costs, earlier: Sequence[tuple[Mapping[str, Any], float]] = ()
    ) -> None:
        super().__init__(metric="map", mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._costs = config.space, dict(costs)
        options = config.search
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=config.seed)
        if options.sampler == "tpe":
            with warnings.catch_warnings():
                # `group` is marked experimental: a remark for us, not for who searches.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(
                    seed=config.seed,
                    n_startup_trials=self._random_points(options.trials),
                    multivariate=True,
                    group=True,  # the settings of a loss are a branch of their own
                    constant_liar=True,
                )
        self._study = optuna.create_study(
            sampler=sampler, directions=["maximize", "minimize"] if self._costs else ["maximize"]
        )
        self._asked: dict[str, optuna.Trial] = {}
        if options.sampler == "grid":
            for _ in range(number_of_trials(config) // len(config.space.cells())):
                for cell in config.space.cells():
                    self._study.enqueue_trial(cell)
        self.taken = sum(self._take(point, value) for point, value in earlier)
        if options.sampler == "tpe" and not self.taken:
            self._begin(self._random_points(options.trials), config.seed)

    def _choices(self) -> dict[str, tuple[Any, ...]]:
        return {name: axis.values for name, axis in self._space.axes().items() if isinstance(axis, Choice)}

    def _random_points(self, trials: int) -> int:
        """How many points are random before TPE chooses: a quarter, and no fewer than the longest list of choices."""
        return max(2, trials // 4, *(len(values) for values in self._choices().values()))

    def _begin(self, points: int, seed: int) -> None:
        """Let the random points take every choice in turn: what was never tried, TPE hardly tries later."""
        rng = np.random.default_rng(seed)
        columns = {
            name: [values[k % len(values)] for k in rng.permutation(points)]
            for name, values in self._choices().items()
        }
        for k in range(points):
            self._study.enqueue_trial({name: column[k] for name, column in columns.items()})

    def _take(self, point: Mapping[str, Any], value: float) -> bool:
        """Add an earlier trial; False where it lies outside the space."""
        axes = self._space.axes() | self._space.loss_axes(str(point.get("loss")))
        if set(point) != set(axes) or not math.isfinite(value):
            return False
        if not all(_holds(axes[name], value) for name, value in point.items()):
            return False
        known = {name: _distribution(axis) for name, axis in axes.items()}
        trial = optuna.create_trial(
            params=dict(point), distributions=known, values=self._values(point, value)
        )
        self._study.add_trial(trial)
        return True

    def _values(self, point: Mapping[str, Any], value: float) -> list[float]:
        return [value, self._costs[architecture(point)]] if self._costs else [value]

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Ray's hook: the next point."""
        trial = self._study.ask()
        self._asked[trial_id] = trial
        point = {name: _drawn(trial, name, axis) for name, axis in self._space.axes().items()}
        point |= {
            name: _drawn(trial, name, axis) for name, axis in self._space.loss_axes(point["loss"]).items()
        }
        return {"point": point}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ray's hook: a trial ended, by itself, by the scheduler or by a fault."""
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        value = float((result or {}).get("best_map", math.nan))
        if error or not math.isfinite(value):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, self._values(trial.params, value))

    def save(self, checkpoint_path: str) -> None:
        """Ray's hook, after every change."""
        with open(checkpoint_path, "wb") as stream:
            pickle.dump(self.__dict__, stream)

    def restore(self, checkpoint_path: str) -> None:
        """Ray's hook on resume."""
        with open(checkpoint_path, "rb") as stream:
            self.__dict__.update(pickle.load(stream))


def _drawn(trial: optuna.Trial, name: str, axis: Axis) -> Any:
    if isinstance(axis, Choice):
        return trial.suggest_categorical(name, axis.values)
    return trial.suggest_float(name, axis.low, axis.high, log=axis.log)


def number_of_trials(config: SearchConfig) -> int:
    """How many trials there will be: a grid is tried in whole rounds."""
    if config.search.sampler != "grid":
        return config.search.trials
    cells = len(config.space.cells())
    return math.ceil(config.search.trials / cells) * cells


def earlier_points(run_ids: Sequence[str]) -> list[tuple[dict[str, Any], float]]:
    """The points and best selection mAPs of the trials of earlier searches, from MLflow.

    Args:
        run_ids: of their parent runs.

    Raises:
        InputError: there is no such run.
    """
    if not run_ids:
        return []
    from mlflow.exceptions import MlflowException

    from data.errors import InputError
    from train.tracking import PARENT_TAG, client

    store, found = client(), []
    for run_id in run_ids:
        try:
            experiment = store.get_run(run_id).info.experiment_id
        except MlflowException as error:
            raise InputError(
                f"search.warm_start: MLflow has no run '{run_id}'; give the run id of a search, as its last lines "
                "print it"
            ) from error
        token: str | None = None
        while token is None or token:
            page = store.search_runs(
                [experiment], f"tags.`{PARENT_TAG}` = '{run_id}'", max_results=1000, page_token=token
            )
            for run in page:
                point, value = run.data.tags.get(POINT_TAG), run.data.metrics.get("best/map")
                if point is not None and value is not None:
                    found.append((json.loads(point), float(value)))
            token = page.token or ""
    return found
