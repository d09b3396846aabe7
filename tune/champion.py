"""The end of a search: the best trial exported, registered, and the summary for the person who started it."""

import sys

from rich.console import Console

from train.publish import export_run, register_model
from tune.run import SETTINGS, Outcome
from tune.space import SearchConfig
from tune.table import build_table

ALIAS = "champion"
INTERRUPTED = 130


def conclude(config: SearchConfig, outcome: Outcome) -> int:
    """Print the trials, export and register the best one, and return the exit code."""
    Console().print(build_table(list(outcome.rows), "trials, best first"))
    if outcome.interrupted:
        print(
            f"interrupted; go on with: python tune/search.py --out {outcome.out} --resume "
            f"(settings: {outcome.out / SETTINGS})",
            file=sys.stderr,
        )
        return INTERRUPTED
    if outcome.best is None:
        print(f"error: no trial finished an epoch; see {outcome.out / 'ray'}/*/error.txt", file=sys.stderr)
        return 1
    exported = export_run(outcome.best, outcome.out / "model.onnx")
    print(f"best       {exported.info.name}: selection mAP {exported.selection_map:.4f} (run {outcome.best})")
    print(f"model      {exported.path}, largest |logit difference| to torch {exported.parity.difference:.1e}")
    if config.search.register and exported.info.run_id:
        version = register_model(exported, config.search.register, ALIAS)
        print(f"registered models:/{config.search.register}@{ALIAS} (version {version})")
    if outcome.run_id:
        print(f"MLflow     parent run {outcome.run_id} (see it with: mlflow ui)")
    print(
        "next       python serve/server.py" + ("" if config.search.register else f" --model {exported.path}")
    )
    return 0
