"""A durable, ordered buffer of the MLflow calls of one run: nothing is lost while the tracking server is away.

Calls are appended to `mlflow.outbox` in the run's folder (`train.outbox_file`), and a thread of the same process
sends them in their order. What it could not send before the run ended stays there for `python train/send.py`.
"""

import fcntl
import math
import os
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from train.mlflow_calls import (
    KEY_TAG,
    PARENT_TAG,
    absolute_store,
    create,
    impatient_client,
    is_temporary,
    note_child,
    one_line,
    perform,
    remove_twins,
)
from train.outbox_file import OUTBOX, Lines, run_id_of, unsent

__all__ = [
    "KEY_TAG",
    "OUTBOX",
    "Outbox",
    "Refused",
    "Sender",
    "adopt",
    "now",
    "run_id_of",
    "send_rest",
    "unsent",
]

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 5.0  # seconds between attempts: doubled from one to the next
_SAY_AFTER = 3.0  # seconds without an answer before a line about it
_LOOK_AGAIN = 1.0  # seconds until lines are noticed that another process appended

_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")  # characters that MLflow refuses


class Refused(Exception):
    """The run itself cannot be created, so that nothing of it can be sent: a bad address, a deleted experiment."""


class Busy(Exception):
    """Another process is sending these calls."""


class Sender:
    """Sends the calls of one outbox, in their order. Only the holder of the lock on the file may: see `claim`.

    Args:
        folder: of the run.
        uri: address of MLflow; "" = MLFLOW_TRACKING_URI, or where the outbox was opened.
        store: an `MlflowClient` on it; None = a new one.
        fresh: nobody can have tried to create the run yet. Otherwise someone may have, and died before it was noted.
    """

    def __init__(self, folder: Path, uri: str = "", store: Any = None, fresh: bool = False) -> None:
        self.lines, self._folder, self._uri, self._store = Lines(folder), folder, uri, store
        self._lock, self._again = -1, not fresh

    def claim(self) -> bool:
        """Take the lock; False where another process or thread has it. It ends with its holder, even by kill -9."""
        self._lock = os.open(self.lines.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError:
            pass  # a file system without locks: then nobody has it
        self.lines.read()
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def address(self) -> str:
        """Of MLflow: the one given, or MLFLOW_TRACKING_URI, or where the run was opened."""
        if self._uri or os.environ.get("MLFLOW_TRACKING_URI"):
            return self._uri or absolute_store()
        return self.lines.store or absolute_store()

    def step(self) -> bool:
        """Send the next call; False where none is left. A call that is at fault itself is dropped with a line.

        Raises:
            Refused: the run cannot be created.
            Exception: MLflow is away; the call stays the next one.
        """
        lines = self.lines
        lines.read()
        if not lines.pending:
            return False
        call = lines.pending[0]
        record: dict[str, Any] = {"sent": lines.done + 1}
        try:
            if self._store is None:
                self._store = impatient_client(self.address())
            if call["call"] == "create":
                again, self._again = self._again, True
                record["run_id"] = create(self._store, call, lines.key, again)
            else:
                self._perform(call)
        except Exception as error:
            if isinstance(error, Busy) or is_temporary(error):
                raise
            if not lines.run_id:
                raise Refused(one_line(error)) from error
            say(f"note: MLflow did not take the {call['call']} of {self._folder}: {one_line(error)}")
        lines.append(record)
        lines.read()
        return True

    def _perform(self, call: Mapping[str, Any]) -> None:
        run_id, kind = self.lines.run_id, call["call"]
        if kind == "child":
            self._note_child(call)
        elif kind == "send_child":
            self._send_child(self._folder / call["folder"])
        elif kind == "send_children":
            for path in sorted(self._folder.glob(f"*/*/{OUTBOX}")):
                if not self._send_child(path.parent):
                    raise Busy(f"{path.parent} still sends its own")
        else:
            perform(self._store, run_id, call, self._folder)
            if kind == "end" and not call.get("unless_ended"):
                remove_twins(self._store, run_id, self.lines.key)

    def _note_child(self, call: Mapping[str, Any]) -> None:
        """Say in the child's own outbox what became of it: also where its run does not exist in MLflow yet."""
        folder, run_id = self._folder / call["folder"], self.lines.run_id
        outbox_run = None
        if (folder / OUTBOX).is_file():
            child = Lines(folder)
            outbox_run = child.run_id
            ended = {"call": "end", "status": call["status"], "time": call["time"], "unless_ended": True}
            child.append({"call": "tags", "values": call["tags"] | {PARENT_TAG: run_id}}, ended)
        if outbox_run is None or call["restarted"]:
            note_child(self._store, run_id, call, outbox_run)

    def _send_child(self, folder: Path) -> bool:
        """Send what a child run left; False where its own process still does."""
        if not (folder / OUTBOX).is_file():
            return True
        sender = Sender(folder, self.address(), self._store)
        if not sender.lines.pending:
            return True
        if not sender.claim():
            return False
        try:
            while sender.step():
                pass
        except Refused as error:
            say(f"note: MLflow did not take the run of {folder}: {error}")
        finally:
            sender.release()
        return True


class Outbox:
    """The writing end: every method appends to the file and returns; a daemon thread sends.

    Args:
        folder: of the run. An outbox that is there already is gone on with, in the same MLflow run.
        experiment: name of the experiment.
        run_name: shown in the UI; "" = MLflow makes one up.
        tags: of a new run.
        run_id: of a run to go on with that has no outbox.
    """

    def __init__(
        self, folder: Path, experiment: str, run_name: str, tags: Mapping[str, str], run_id: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._lines, self._uri = folder, Lines(folder), absolute_store()
        self.taken_up = bool(self._lines.key or run_id)
        if not self._lines.key:
            head = {"outbox": 1, "key": uuid.uuid4().hex, "store": "" if _secret(self._uri) else self._uri}
            first: list[dict[str, Any]] = [head | ({"run_id": run_id} if run_id else {})]
            if not run_id:
                call = {"call": "create", "experiment": experiment, "name": run_name, "tags": dict(tags)}
                first.append(call | {"time": now()})
            self._lines.append(*first)
            self._lines.read()
        if self.taken_up:
            self._lines.append({"call": "running"})
        self.key = self._lines.key
        self._run_id = self._lines.run_id
        self._empty_at, self._trouble, self._over = 0, "", False
        self._stop, self._wake, self._changed = threading.Event(), threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow outbox", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        """Of the MLflow run, "" until it was created."""
        return self._run_id

    def add(self, *calls: Mapping[str, Any]) -> None:
        """Append calls as `train.mlflow_calls.perform` takes them."""
        self._lines.append(*calls)
        self._wake.set()

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters."""
        self.add({"call": "params", "values": {key: str(value) for key, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; what MLflow refuses is left out (NaN) or replaced (the + of a class "c++")."""
        accepted = {_NOT_IN_NAMES.sub("_", key): float(v) for key, v in values.items() if math.isfinite(v)}
        self.add({"call": "metrics", "values": accepted, "step": step, "time": now()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        self.add({"call": "tags", "values": {key: str(value) for key, value in values.items()}})

    def dataset(self, values: Mapping[str, str]) -> None:
        """Log the run's input: name, digest, source (a path) and profile."""
        self.add({"call": "dataset", "values": dict(values)})

    def artifact(self, path: Path) -> None:
        """Log a file as it is when it is sent."""
        inside = path.absolute().is_relative_to(self._folder.absolute())
        place = path.absolute().relative_to(self._folder.absolute()) if inside else path.absolute()
        self.add({"call": "artifact", "path": str(place)})

    def end(self, status: str) -> None:
        """Close the run as "FINISHED", "FAILED" or "KILLED"."""
        self.add({"call": "end", "status": status, "time": now()})

    def wait_for_run(self, seconds: float) -> str:
        """The run's id, waited for that long; "" where it was not created by then."""
        with self._changed:
            self._changed.wait_for(lambda: self._run_id or self._over, seconds)
        return self._run_id

    def close(self, seconds: float) -> bool:
        """Wait up to that long until everything was sent, and stop the thread; whether it was.

        Ctrl-C ends the waiting. What is left stays in the file, and a line says so.
        """
        size, patience = self._lines.path.stat().st_size, time.monotonic() + seconds
        self._wake.set()
        told = seconds <= 2
        try:
            with self._changed:
                while self._empty_at < size and not self._over:
                    left = patience - time.monotonic()
                    if left <= 0:
                        break
                    if not self._changed.wait(left if told else min(left, 2.0)) and not told:
                        told = True
                        say(f"waiting up to {left:.0f} s for MLflow to take the record (Ctrl-C: not now)")
        except KeyboardInterrupt:
            say("not waited for")
        self._stop.set()
        self._wake.set()
        if self._empty_at >= size:
            self._thread.join(_LAST_PAUSE)
            return True
        rest = f"python train/send.py --run {self._folder}"
        say(f"note: MLflow has not taken all of the record{self._trouble}; later: {rest}")
        return False

    def _work(self) -> None:
        sender = Sender(self._folder, self._uri, fresh=not self.taken_up)
        while not sender.claim():
            self._trouble = " (another process sends it)"
            if self._stop.wait(0.2):
                return
        self._trouble = ""
        try:
            self._send(sender)
        except Refused as error:
            self._trouble = f" ({error})"
            say(f"note: MLflow cannot take this run: {error}. It is kept in {sender.lines.path}")
        finally:
            sender.release()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _send(self, sender: Sender) -> None:
        pause, since, told = _FIRST_PAUSE, 0.0, False
        while True:
            try:
                more = sender.step()
            except Refused:
                raise
            except Exception as error:
                self._trouble, since = f" ({one_line(error)})", since or time.monotonic()
                if time.monotonic() - since > _SAY_AFTER and not told:
                    told = True
                    say(f"note: MLflow is away{self._trouble}; the record waits in {sender.lines.path}")
                # Not all processes at the same moment when the server comes back.
                if self._stop.wait(pause * random.uniform(0.7, 1.0)):
                    return
                pause = min(2 * pause, _LAST_PAUSE)
                continue
            if told:
                say("note: MLflow is back")
            pause, since, told, self._trouble = _FIRST_PAUSE, 0.0, False, ""
            with self._changed:
                self._run_id = sender.lines.run_id
                self._empty_at = 0 if sender.lines.pending else sender.lines.offset
                self._changed.notify_all()
            if self._stop.is_set():
                return
            if not more:
                self._wake.wait(_LOOK_AGAIN)
                self._wake.clear()


def send_rest(folder: Path) -> tuple[int, int, str]:
    """Send what a run that is over left: how many calls were sent, how many are left, and why."""
    sender, sent, trouble = Sender(folder), 0, ""
    if not sender.claim():
        return 0, len(sender.lines.pending), "its process is alive and sends them itself"
    try:
        while sender.step():
            sent += 1
    except Exception as error:
        trouble = one_line(error)
    finally:
        sender.release()
    return sent, len(sender.lines.pending), trouble


def adopt(folder: Path, parent: Path) -> None:
    """Make the run of `folder` a child of the search of `parent`, where nobody could tell it so when it started."""
    child, run_id = Lines(folder), Lines(parent).run_id
    if run_id and PARENT_TAG not in child.tags:
        child.append({"call": "tags", "values": {PARENT_TAG: run_id}})


def now() -> int:
    """Milliseconds since 1970, as MLflow has them."""
    return int(time.time() * 1000)


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def _secret(uri: str) -> bool:
    return urlsplit(uri).password is not None
