"""What a finished run says to the person who started it."""

import os

from train import checkpoint
from train.loop import Result


def print_result(result: Result) -> None:
    """Print the best epoch, the time, and where the results are (main process only)."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    print(
        f"best selection mAP {result.best_map:.4f} at epoch {result.best_epoch} of {result.epochs}; "
        f"{result.seconds:.0f} s of training at {result.images_per_second:.0f} images/s"
    )
    print(f"weights    {result.out / checkpoint.BEST}")
    print(f"curves     {result.out / checkpoint.CURVES}, {result.out / checkpoint.HISTORY}")
    if result.run_id:
        print(f"MLflow     run {result.run_id} (see it with: mlflow ui)")
    print(f"next       python train/export.py --run {result.out} --out {result.out.with_suffix('.onnx')}")
