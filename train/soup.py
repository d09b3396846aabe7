"""Average the weights of several runs into one model ("model soup"), as fast to serve as one of them.

    python train/soup.py --runs runs/train/seed0 runs/train/seed1 runs/train/seed2 --out runs/train/soup
    python train/export.py --run runs/train/soup --out model.onnx

Wortsman et al. 2022, arXiv:2203.05482. The runs must share everything but the seed and what they learn with:
architecture, starting weights, data and selection part.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from data.cli import run


@dataclass(frozen=True)
class SoupOptions:
    """Average the best weights of several runs.

    Attributes:
        runs: folders of the runs, two or more.
        out: folder of the soup; it is exported like a run.
        greedy: begin with the best run and take each further one in only where it raises the selection mAP;
            otherwise all are averaged.
    """

    runs: tuple[Path, ...]
    out: Path
    greedy: bool = False


def main(arguments: list[str]) -> int:
    """Parse, average, and say what it is worth on the selection part."""
    import tyro

    options = tyro.cli(SoupOptions, args=arguments, prog="train/soup.py", description=__doc__)
    from train.averaging import cook

    soup = cook(options.runs, options.out, options.greedy)
    for folder, value in soup.members:
        print(f"{value:.4f}  {folder}{'' if folder in soup.taken else '  (left out)'}")
    print(f"{soup.map:.4f}  the average of {len(soup.taken)}, in {options.out}")
    print(f"next       python train/export.py --run {options.out} --out {options.out.with_suffix('.onnx')}")
    return 0


def cli() -> None:
    """The console script `tailacc-soup`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
