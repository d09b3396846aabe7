"""Images on their way: files to messages, messages to the servers, answers to parts."""

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.image import ImageError, load
from proto.tailacc.v1 import scoring_pb2 as pb
from serve.budget import ByteBudget
from serve.config import cores
from serve.parts import Part
from serve.remote import Servers

# Threads that read files; those that also decode are as many as cores.
_READERS = 8


@dataclass(frozen=True, slots=True)
class Job:
    """One image to send: its row in the list, id, file, and the bytes that it takes in flight."""

    row: int
    image_id: str
    path: Path
    size: int


class Sender:
    """Turns files into messages and answers into parts. A context manager.

    Args:
        servers: connected.
        pixels: S, where images are decoded and resized here to S x S; 0: they are sent as they are.
        budget: bytes of images in flight.
    """

    def __init__(self, servers: Servers, pixels: int, budget: int) -> None:
        self._servers, self._pixels = servers, pixels
        self._budget = ByteBudget(budget)
        self._pool = ThreadPoolExecutor(cores() if pixels else _READERS, thread_name_prefix="read")

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def score(self, chunk: list[Job]) -> list[tuple[Job, Part]]:
        """Read and score one chunk; one part a job, in any order. Raises as `Servers.score`."""
        async with self._budget.hold(sum(job.size for job in chunk)):
            loop = asyncio.get_running_loop()
            sent, images, done = await loop.run_in_executor(self._pool, read_jobs, chunk, self._pixels)
            if images:
                answers = await self._servers.score(images)
                done += [(job, part_of(a.result, a.model)) for job, a in zip(sent, answers, strict=True)]
        return done


def split_jobs(jobs: Iterable[Job], count: int, size: int) -> Iterator[list[Job]]:
    """Chunks of at most `count` jobs and `size` bytes; a job above `size` goes alone."""
    chunk: list[Job] = []
    held = 0
    for job in jobs:
        if chunk and (len(chunk) == count or held + job.size > size):
            yield chunk
            chunk, held = [], 0
        chunk.append(job)
        held += job.size
    if chunk:
        yield chunk


def read_jobs(chunk: list[Job], pixels: int) -> tuple[list[Job], list[Any], list[tuple[Job, Part]]]:
    """The jobs to send with their `pb.Image`, and the parts of those that cannot be read, or here decoded."""
    jobs, images, failed = [], [], []
    for job in chunk:
        try:
            data = job.path.read_bytes()
            if pixels:
                image = pb.Image(id=job.image_id, pixels=load(data, pixels).tobytes())
            else:
                image = pb.Image(id=job.image_id, content=data)
        except OSError as error:
            failed.append((job, Part(reason=f"cannot be read: {error.strerror}")))
        except ImageError as error:
            failed.append((job, Part(reason=_reason(pb.ImageStatus.CODE_BAD_IMAGE, str(error)))))
        else:
            jobs.append(job)
            images.append(image)
    return jobs, images, failed


def part_of(result: Any, model: int) -> Part:
    """What an `ImageResult` says."""
    if result.status.code == pb.ImageStatus.CODE_OK:
        return Part(model, tuple(result.logits), tuple(result.scores))
    return Part(reason=_reason(result.status.code, result.status.message))


def _reason(code: Any, message: str) -> str:
    return f"{pb.ImageStatus.Code.Name(code).removeprefix('CODE_').lower().replace('_', ' ')}: {message}"
