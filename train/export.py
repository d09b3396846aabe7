"""Export a run's best weights as a model file (ONNX), with a parity gate, and register it.

    python train/export.py --run runs/train/first --out model.onnx
    python train/export.py --run runs/train/first --out model.onnx --register --alias champion
    python train/export.py --run runs/train/first --out model.onnx --precision int8      and model.int8.onnx

With no arguments: the newest run in runs/train, written beside its weights as model.onnx.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data.cli import run


@dataclass(frozen=True)
class ExportOptions:
    """Export a run's best weights as ONNX.

    Attributes:
        run: folder of the run; None: the newest in runs/train.
        out: the file to write; None: model.onnx in the run's folder.
        register: log the model to the run in MLflow and register it.
        name: name of the registered model.
        alias: give the new version this alias, such as "champion" (implies --register).
        calibration: of the scores, fitted on the selection part; auto: the kind with the lowest cross-fitted
            negative log-likelihood there.
        wished_precision: what the second set of thresholds should reach, above 0 and at most 1.
        precision: of a second model file, written beside the first only if its mAP on the selection part is at
            most 0.003 lower; --register then takes it. int8 is for CPUs; fp16 is for GPUs, on a CPU it brings nothing.
    """

    run: Path | None = None
    out: Path | None = None
    register: bool = False
    name: str = "tailacc"
    alias: str = ""
    calibration: Literal["auto", "platt", "temperature", "none"] = "auto"
    wished_precision: float = 0.9
    precision: Literal["float32", "int8", "fp16"] = "float32"


def main(arguments: list[str]) -> int:
    """Parse, export, and say where the model is."""
    import tyro

    options = tyro.cli(ExportOptions, args=arguments, prog="train/export.py")
    from train.publish import describe, export_run, newest_run, register_model

    folder = options.run or newest_run(Path("runs/train"))
    out = options.out or folder / "model.onnx"
    exported = export_run(folder, out, options.calibration, options.wished_precision)
    print("\n".join(describe(exported)))
    if options.precision != "float32":
        from train.cheaper import describe_cheaper, export_cheaper

        cheaper = export_cheaper(exported, options.precision, options.calibration)
        print("\n".join(describe_cheaper(cheaper)))
        exported = replace(exported, path=cheaper.path, info=cheaper.info, fit=cheaper.fit)
    if options.register or options.alias:
        version = register_model(exported, options.name, options.alias)
        print(
            f"registered models:/{options.name}/{version}"
            + (f" as @{options.alias}" if options.alias else "")
        )
    print(f"next       python serve/server.py --model {exported.path}")
    return 0


def cli() -> None:
    """The console script `tailacc-export`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
