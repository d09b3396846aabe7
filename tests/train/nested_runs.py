"""Four processes that write nested runs at once: `python nested_runs.py FOLDER SECONDS_AN_EPOCH`."""

import os
import sys
import time
from pathlib import Path

# Before the fork, so that MLflow is loaded once; nothing of it is open yet.
import mlflow.tracking  # noqa: F401

from train.outbox import Outbox
from train.tracking import PARENT_TAG, MlflowTracker


def write(folder: Path, number: int, pause: float, parent: str) -> None:
    for i in range(2):
        own = folder / "trials" / f"{number}.{i}"
        data = {"name": "squares", "digest": "1", "source": "/d", "profile": "{}"}
        tags = {PARENT_TAG: parent, "trial_id": own.name}
        tracker = MlflowTracker(own, "nested", own.name, {"lr": number}, data, tags, wait=100)
        for epoch in range(1, 6):
            tracker.epoch(epoch, {"loss": 1 / epoch, **{f"val/ap/{c}": 0.5 for c in range(20)}})
            time.sleep(pause)
        (own / "notes.txt").write_text(f"{number}\n" * 1000)
        tracker.finish("FINISHED", {"best/map": 0.5}, [own / "notes.txt"])


def main(folder: Path, pause: float) -> int:
    parent = os.fork()
    if parent == 0:
        outbox = Outbox(folder, "nested", "parent", {})
        outbox.wait_for_run(100)
        os._exit(not outbox.close(100))
    if os.waitpid(parent, 0)[1]:
        return 1
    from train.outbox import run_id_of

    run_id = run_id_of(folder)
    print(run_id, flush=True)
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            write(folder, number, pause, run_id)
            os._exit(0)
        pids.append(pid)
    return max(os.waitpid(pid, 0)[1] for pid in pids)


if __name__ == "__main__":
    sys.exit(int(main(Path(sys.argv[1]), float(sys.argv[2])) != 0))
