"""Send to MLflow what it could not take while a run went on: the server was away until the run had ended.

    python train/send.py --run runs/train/first runs/train/second
    python train/send.py --search runs/tune/night        the search and all its trials

The address is MLFLOW_TRACKING_URI, or else the one that the run was started with.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from data.cli import run
from data.errors import InputError


@dataclass(frozen=True)
class SendOptions:
    """Send what is left of the MLflow record of runs.

    Attributes:
        run: folders of runs.
        search: folder of a search: all runs in it.
    """

    run: tuple[Path, ...] = ()
    search: Path | None = None


def main(arguments: list[str]) -> int:
    """Parse, send, and say per run how many calls were sent; 1 where some are left."""
    import tyro

    options = tyro.cli(SendOptions, args=arguments, prog="train/send.py")
    from train.outbox import OUTBOX, adopt, send_rest, unsent

    if not options.run and options.search is None:
        raise InputError("nothing to send: give --run DIR or --search DIR")
    for folder in options.run:
        if not (folder / OUTBOX).is_file():
            raise InputError(f"--run {folder} holds no {OUTBOX}: it is not the folder of a tracked run")
    folders, left_over = list(options.run), 0
    if options.search is not None:
        paths = sorted(options.search.rglob(OUTBOX), key=lambda path: (len(path.parts), path))
        if not paths:
            raise InputError(f"--search {options.search} holds no {OUTBOX}: nothing in it was tracked")
        folders += [path.parent for path in paths]
    for folder in folders:
        if options.search is not None and folder not in (options.search, *options.run):
            adopt(folder, options.search)  # the search's own calls were sent before
        if not unsent(folder):
            continue
        sent, left, trouble = send_rest(folder)
        left_over += left
        rest = f", {left} left: {trouble}" if left else ""
        print(f"{folder}: {sent} call{'s' * (sent != 1)} sent{rest}", flush=True)
    print("everything is in MLflow" if not left_over else f"{left_over} calls are left", flush=True)
    return 1 if left_over else 0


def cli() -> None:
    """The console script `tailacc-send`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
