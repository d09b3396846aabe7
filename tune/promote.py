"""Say which version of a registered model is the champion, and change it.

    python tune/promote.py                                   list the versions with aliases, mAP, hash and dates
    python tune/promote.py --rollback                        champion <-> previous
    python tune/promote.py --version 4                       champion if it is better outside the noise
    python tune/promote.py --version 4 --policy always       champion without a comparison

Both models are scored on the selection part of the data that version 4 was trained on; --run DIR takes the data of
that run's configuration instead. The exit code is 0 too where the champion stays: the line says why.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.cli import run
from data.errors import InputError


@dataclass(frozen=True)
class PromoteOptions:
    """List the versions of a registered model, move its champion, or roll it back.

    Attributes:
        name: of the registered model.
        list: print the versions; the default.
        rollback: exchange champion and previous; a second time undoes it.
        version: make this version champion, and what was champion previous.
        policy: of --version. if-better: only where its mAP on the same selection part is higher outside the noise.
        run: folder of a run whose data decide, where those of the version's own lie elsewhere now.
    """

    name: str = "tailacc"
    list: bool = False
    rollback: bool = False
    version: int | None = None
    policy: Literal["if-better", "always"] = "if-better"
    run: Path | None = None


def main(arguments: list[str]) -> int:
    """Parse, do the one thing that is asked for, and say what is so now."""
    import tyro

    options = tyro.cli(PromoteOptions, args=arguments, prog="tune/promote.py")
    asked = [options.list, options.rollback, options.version is not None]
    if sum(asked) > 1:
        raise InputError("--list, --rollback and --version are three things to do; give one of them")
    if options.version is None and (options.run or options.policy != "if-better"):
        raise InputError("--run and --policy belong to --version N; give the version")
    from tune.promotion import examples_of_run, list_versions, promote, rollback

    if options.rollback:
        print(rollback(options.name).describe())
    elif options.version is not None:
        compared = options.run is not None and options.policy == "if-better"
        examples = examples_of_run(options.run) if options.run and compared else None
        print(promote(options.name, str(options.version), options.policy, examples).describe())
    else:
        print("\n".join(list_versions(options.name)))
    return 0


def cli() -> None:
    """The console script `tailacc-promote`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
