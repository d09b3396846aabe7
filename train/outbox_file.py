"""The file of an outbox (`train.outbox`): appended to by any process, read from its beginning and as it grows.

    {"outbox": 1, "key": "5f0c...", "store": "http://mlflow:5000"}     first line
    {"call": "create", "experiment": "tailacc", ...}                   calls, counted from 1
    {"sent": 1, "run_id": "8b1f..."}                                   the first so many calls are in MLflow

Lines are appended by one `write`, so a killed process leaves whole lines, or a torn last one that is not counted.
"""

import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUTBOX = "mlflow.outbox"
_ENVIRONMENT = "environment.json"  # of a run; it names the MLflow run too


class Lines:
    """The file, read from its beginning and then as it grows.

    Attributes:
        key: of the outbox, "" where there is no file.
        store: address of MLflow, "" where it would have told a password.
        run_id: of the MLflow run, "" until it was created.
        tags: that the run has, or will have.
        done: calls that were sent.
        pending: calls that were not, in their order.
        offset: bytes read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / OUTBOX
        self.key = self.store = self.run_id = ""
        self.tags: dict[str, str] = {}
        self.done, self.offset = 0, 0
        self.pending: deque[dict[str, Any]] = deque()
        self.read()

    def read(self) -> None:
        """Take in the whole lines that were appended."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by the death of its writer; the next writer began a new line
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        if "call" in record:
            self.pending.append(record)
            if record["call"] == "create":
                self.tags |= record["tags"]
            elif record["call"] == "tags":
                self.tags |= record["values"]
            return
        self.key = record.get("key", self.key)
        self.store = record.get("store", self.store)
        self.run_id = record.get("run_id", self.run_id)
        while self.pending and self.done < record.get("sent", 0):
            self.pending.popleft()
            self.done += 1

    def append(self, *records: Mapping[str, Any]) -> None:
        """Append lines by one system call, whole or not at all; OSError where the disk is full."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = "\n" + text
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def run_id_of(folder: Path) -> str:
    """The MLflow run of a run's folder, also where its checkpoint was written before the run had an id; else ""."""
    if found := Lines(folder).run_id:
        return found
    path = folder / _ENVIRONMENT
    return str(json.loads(path.read_text(encoding="utf-8")).get("run_id", "")) if path.is_file() else ""


def unsent(folder: Path) -> int:
    """Calls of a run's outbox that are not in MLflow yet."""
    return len(Lines(folder).pending)
