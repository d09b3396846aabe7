"""A search from beginning to end: prepare once, let Ray Tune try the points, race the best, record.

    from tune.run import search
    outcome = search(config)      # config of tune.space, with `out` set

`out` owns what the search writes: search.json, ray/ and ray-race/ (what --resume needs), trials/<id>/ (a run
folder of train/ each), trials.csv, race.json, the pictures and model.onnx.
"""

import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.voc import default_devkit
from train import checkpoint
from train.config_files import override, to_dict
from train.examples import open_examples
from train.selection_scores import read_selection_scores
from tune.cost import measure_cost
from tune.placement import Placement, machines, place, prepare_machines, ray_for
from tune.points import absolute_weights, architecture, check_space, data_configs, fetch_all_weights
from tune.race import (
    RACE,
    Runner,
    Standing,
    costs_of,
    describe_race,
    finalists,
    judge,
    race_points,
    write_race,
)
from tune.record import ParentRun
from tune.rows import TABLE, TrialRow, best_first, write_table
from tune.sampling import Points, earlier_points, number_of_trials
from tune.space import SearchConfig
from tune.table import TrialTable
from tune.trial import ENDED, TRIALS, trial_folder
from tune.tuning import concurrency, make_scheduler, run_tune

SETTINGS = "search.json"
STATE, RACE_STATE = "ray", "ray-race"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a search ended.

    Attributes:
        out: its folder.
        rows: the trials in the order in which they began, those of the race last.
        standings: of the race, the winner first; empty where there was none.
        interrupted: it was stopped by Ctrl-C and can be resumed.
        winner: folder of the run to export; None where no trial finished an epoch.
        parent: the search's MLflow run, still open; None where it is not tracked.
        starts: seconds until Ray Tune began to start trials, and until the first one's process was ready.
    """

    out: Path
    rows: tuple[TrialRow, ...]
    standings: tuple[Standing, ...] = ()
    interrupted: bool = False
    winner: Path | None = None
    parent: ParentRun | None = None
    starts: tuple[float, float] = (math.nan, math.nan)


def search(config: SearchConfig, begun: float = 0.0) -> Outcome:
    """Run a search, or go on with it where `config.resume` is set.

    Args:
        config: see `tune.space`.
        begun: seconds since 1970 at which the command started; 0 = now.

    Raises:
        InputError: a space that cannot be trained, a folder that is in use, resources that no machine has.
    """
    if config.out is None:
        raise InputError("out must be set: the folder that owns what the search writes")
    begun = begun or time.time()
    out = config.out.absolute()
    config = _settle(config, out)
    check_space(config)
    with ray_for(config):
        placement = place(config.search, [node["Resources"] for node in machines()])
        earlier = earlier_points(config.search.warm_start)
        fetch_all_weights(config)
        # Once here, so that no trial decodes an image.
        examples = [open_examples(data) for data in data_configs(config)]
        out.mkdir(parents=True, exist_ok=True)
        prepare_machines(config, out)
        _write_settings(config, out)
        parent = ParentRun(config, out) if config.tracking.enabled else None
        _say(config, examples[0], placement)
        running = _Search(config, out, placement, parent, earlier, len(examples[0].labels.classes))
        return running.run(begun)


class _Search:
    """The parts of a search while Ray runs."""

    def __init__(
        self,
        config: SearchConfig,
        out: Path,
        placement: Placement,
        parent: ParentRun | None,
        earlier: Sequence[tuple[Mapping[str, Any], float]],
        classes: int,
    ) -> None:
        self.config, self.out, self.placement, self.parent = config, out, placement, parent
        self.earlier = earlier
        self.tags: Mapping[str, str] = parent.child_tags() if parent else {}
        self.measure = functools.partial(measure_cost, config, classes=classes)

    def run(self, begun: float) -> Outcome:
        """Try the points, race the best, and say where it ended; the MLflow run stays open for the winner's model."""
        outcome = self._run(begun)
        if not outcome.interrupted:
            self._close_forgotten({row.trial_id for row in outcome.rows})
        return outcome

    def _run(self, begun: float) -> Outcome:
        out, options = self.out, self.config.search
        costs = self._costs()
        table = self._try(costs)
        rows = [replace_cost(row, table.points, costs) for row in table.rows.values()]
        write_table(out / TABLE, best_first(rows))
        starts = (table.asked - begun, table.first_start - begun)
        unfinished = any(row.state == "unfinished" for row in rows)
        if unfinished or (len(rows) < table.total and not table.time_is_over):
            return Outcome(out, tuple(rows), interrupted=True, parent=self.parent, starts=starts)
        chosen = finalists(rows, options.finalists)
        if len(chosen) < 2:
            winner = trial_folder(out, chosen[0].trial_id) if chosen else None
            return Outcome(out, tuple(rows), winner=winner, parent=self.parent, starts=starts)
        race = self._race(chosen, table.points)
        rows += race.rows.values()
        write_table(out / TABLE, best_first(rows))
        if any(row.state == "unfinished" for row in race.rows.values()) or len(race.rows) < race.total:
            return Outcome(out, tuple(rows), interrupted=True, parent=self.parent, starts=starts)
        standings = self._judge(chosen, race, table.points, costs)
        winner = Path(standings[0].folder) if standings else trial_folder(out, chosen[0].trial_id)
        return Outcome(out, tuple(rows), tuple(standings), False, winner, self.parent, starts)

    def _close_forgotten(self, known: set[str]) -> None:
        """Close the record of trials that began within the last seconds before a kill -9.

        Ray Tune had not noted them and tried their points again under new ids.
        """
        for folder in (self.out / TRIALS).glob("*"):
            if folder.name not in known and folder.is_dir():
                row = TrialRow(
                    folder.name, "unfinished", reason="the search was killed before it had noted this trial"
                )
                free_disk(self.out, row, [], 0)
                if self.parent:
                    self.parent.trial_ended(row)

    def _costs(self) -> dict[str, float]:
        """The serving cost of every architecture in the space, where the objective asks for it."""
        if self.config.search.objective == "map":
            return {}
        cells = {architecture(cell): cell for cell in self.config.space.cells()}
        found = {}
        for name, cell in cells.items():
            found[name] = self.measure(cell)
            print(f"cost       {name}: {found[name]:.2f} ms of a core an image", file=sys.stderr, flush=True)
        return found

    def _try(self, costs: Mapping[str, float]) -> TrialTable:
        from ray import tune

        config, options = self.config, self.config.search
        searcher = Points(config, costs, self.earlier)
        if options.warm_start:
            print(
                f"warm start {searcher.taken} earlier trials lie in this space", file=sys.stderr, flush=True
            )
        table = self._table(number_of_trials(config), "trials", options.hours * 3600)
        tune_config = tune.TuneConfig(
            metric="map",
            mode="max",
            search_alg=searcher,
            scheduler=make_scheduler(config),
            num_samples=table.total,
            max_concurrent_trials=concurrency(config, self.placement),
            reuse_actors=options.workers == 1 and options.scheduler != "hyperband",
        )
        run_tune(config, self.out, STATE, tune_config, {}, table, self.placement, self.tags, options.hours)
        return table

    def _race(self, chosen: Sequence[TrialRow], points: Mapping[str, Mapping[str, Any]]) -> TrialTable:
        from ray import tune
        from ray.tune.search.basic_variant import BasicVariantGenerator

        config, options = self.config, self.config.search
        config = dataclasses.replace(config, search=dataclasses.replace(options, scheduler="none"))
        starts = race_points(chosen, points, config.seed, options.race_seeds)
        table = self._table(len(starts), "runs of the race")
        tune_config = tune.TuneConfig(
            metric="map",
            mode="max",
            search_alg=BasicVariantGenerator(max_concurrent=concurrency(config, self.placement)),
            num_samples=1,
            reuse_actors=options.workers == 1,
        )
        space = {"point": tune.grid_search(starts)}
        run_tune(
            config,
            self.out,
            RACE_STATE,
            tune_config,
            space,
            table,
            self.placement,
            {**self.tags, "race": "1"},
        )
        return table

    def _table(self, total: int, name: str, seconds: float = 0.0) -> TrialTable:
        return TrialTable(total, self.config.schedule.epochs, self._ended, name, seconds)

    def _ended(self, row: TrialRow, rows: Sequence[TrialRow]) -> None:
        """A trial ended: its record is closed, and weights that nobody will ask for are removed."""
        if self.parent:
            self.parent.trial_ended(row)
        free_disk(self.out, row, rows, self.config.search.keep)

    def _judge(
        self,
        chosen: Sequence[TrialRow],
        race: TrialTable,
        points: Mapping[str, Mapping[str, Any]],
        costs: Mapping[str, float],
    ) -> list[Standing]:
        finished = [row for row in race.rows.values() if row.state == "completed"]
        runners = []
        for row in chosen:
            fresh = [r for r in finished if race.points[r.trial_id]["finalist"] == row.trial_id]
            folders = tuple(trial_folder(self.out, r.trial_id) for r in fresh)
            if folders:
                runners.append(Runner(row.trial_id, points[row.trial_id], folders))
        if not runners:
            print("note       no race finished; the best trial wins as it is", file=sys.stderr, flush=True)
            return []
        standings = judge(runners, costs_of(costs, self.measure))
        write_race(self.out / RACE, standings)
        images = len(read_selection_scores(Path(standings[0].folder) / checkpoint.SELECTION_SCORES).image_ids)
        print("\n".join(describe_race(standings, images)), file=sys.stderr, flush=True)
        for row in finished:
            folder = trial_folder(self.out, row.trial_id)
            if str(folder) not in {s.folder for s in standings}:
                (folder / checkpoint.BEST).unlink(missing_ok=True)
        return standings


def replace_cost(
    row: TrialRow, points: Mapping[str, Mapping[str, Any]], costs: Mapping[str, float]
) -> TrialRow:
    """The row with the serving cost of its architecture, where that is known."""
    return dataclasses.replace(row, cost=costs.get(architecture(points[row.trial_id]), math.nan))


def free_disk(out: Path, ended: TrialRow, rows: Sequence[TrialRow], keep: int) -> None:
    """Remove the checkpoints of a trial that ended, and the weights of all but the `keep` best ended trials."""
    folder = trial_folder(out, ended.trial_id)
    if ended.state != "failed":  # a failed one may go on with --resume
        (folder / ENDED).touch()
        for name in (checkpoint.LAST, checkpoint.PREVIOUS):
            (folder / name).unlink(missing_ok=True)
    closed = [row for row in rows if row.state in ("completed", "pruned")]
    for row in best_first(closed)[keep:]:
        (trial_folder(out, row.trial_id) / checkpoint.BEST).unlink(missing_ok=True)


def _settle(config: SearchConfig, out: Path) -> SearchConfig:
    """Absolute paths, since workers have their own folder; on resume the settings that the search began with."""
    settings = out / SETTINGS
    if config.resume:
        if not settings.is_file():
            raise InputError(
                f"--resume: {out} holds no {SETTINGS}; leave --resume out to start a search there"
            )
        saved = json.loads(settings.read_text(encoding="utf-8"))
        return override(config, saved | {"resume": True}, str(settings))
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"--out {out} is not empty; choose another folder, or --resume to go on with its search"
        )
    root = config.data.root
    if root is None and config.data.labels is None:
        root = default_devkit()
    data = dataclasses.replace(
        config.data,
        root=root.absolute() if root else None,
        labels=config.data.labels.absolute() if config.data.labels else None,
        cache=config.data.cache.absolute(),
    )
    space = dataclasses.replace(config.space, backbone=absolute_weights(config.space.backbone))
    return dataclasses.replace(config, out=out, data=data, space=space)


def _write_settings(config: SearchConfig, out: Path) -> None:
    text = json.dumps(to_dict(config), indent=2)
    partial = out / (SETTINGS + ".part")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, out / SETTINGS)


def _say(config: SearchConfig, examples: Any, placement: Placement) -> None:
    space, options = config.space, config.search
    trials = number_of_trials(config)
    at_once = concurrency(config, placement)
    each = f"{options.workers} x " if options.workers > 1 else ""
    gpus = f" + {placement.worker['GPU']:g} GPU" if placement.worker["GPU"] else ""
    print(
        f"search     {trials} trials over {len(space.backbone)} backbones and {len(space.loss)} losses "
        f"({options.sampler}, {options.scheduler}), {config.schedule.epochs} epochs each\n"
        f"data       {examples.labels.name}: {len(examples.train)} to train on, {len(examples.selection)} to "
        f"select on\n"
        f"placed     {at_once} at a time on {placement.machines} machine{'s' * (placement.machines > 1)}, "
        f"{each}{placement.worker['CPU']:g} CPU{gpus} each",
        file=sys.stderr,
        flush=True,
    )
