"""The decode pool: encoded images to pixels in threads, which works since `data.image.load` releases the GIL."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class DecodePool:
    """`threads` threads that carry out jobs in order, once started. Shared by all models on a GPU.

    How many jobs wait here is bounded by the batchers that send them (at most `threads` each). Not a
    `ThreadPoolExecutor`: that makes a future with a lock for every image, and at its end waits for threads.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads, where that was not done."""
        for number in range(len(self._threads), self.threads):
            thread = threading.Thread(target=self._work, name=f"decode-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, job: Job) -> None:
        """Carry out `job`, which must not raise, in a thread."""
        self._jobs.put(job)

    def close(self, wait_s: float) -> bool:
        """End the threads once what was submitted is done; whether all had ended within `wait_s` seconds."""
        for _ in range(self.threads):
            self._jobs.put(None)
        end = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while job := self._jobs.get():
            job()
            del job  # of a model that may be replaced before the next one comes
