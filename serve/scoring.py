"""Score a set of images through the servers into a score file; a killed run goes on where it was."""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.progress import ProgressBar
from data.scores import Scores, failures_path, write_scores
from proto.tailacc.v1 import scoring_pb2 as pb
from serve.config import ScoreConfig
from serve.parts import Part, PartStore, open_parts, parts_folder
from serve.remote import CallFailed, ModelChanged, Servers
from serve.sources import ImageList, find_images

# A call of ours stays below this even where the server would take more: 16 photographs rarely pass it.
_CALL_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One image to send."""

    image_id: str
    path: Path
    size: int


async def score(config: ScoreConfig) -> int:
    """Score all images of `config` and print where the results are. Returns the exit code.

    Raises:
        InputError: no server, no image, or parts of another run.
    """
    config.check()
    if config.out.is_dir():
        raise InputError(f"--out must be a file such as {config.out / 'scores.parquet'}, got a folder")
    images = find_images(config.images, config.split)
    async with Servers(config.connection, config.channels) as servers:
        model = servers.model
        _say(
            f"images  {len(images)} of {images.name}\n"
            f"model   {model.model.name} version {model.model.version} ({model.model.hash[:16]}), "
            f"{len(model.classes)} classes\n"
            f"servers {', '.join(servers.addresses)}; at most {config.calls * len(servers.addresses)} calls "
            f"of {min(config.batch, model.limits.request_images)} images in flight"
        )
        manifest = {
            "model_hash": model.model.hash,
            "preprocessing": model.preprocessing,
            "data_fingerprint": images.fingerprint,
        }
        with open_parts(config.out, manifest, config.restart) as store:
            if store.resumed:
                _say(f"going on from {store.resumed} images in {store.folder}")
            try:
                await _score_missing(config, images, servers, store)
            except (CallFailed, ModelChanged, asyncio.CancelledError) as error:
                kept = f"{len(store.done)} of {len(images)} images are kept in {parts_folder(config.out)}"
                if isinstance(error, asyncio.CancelledError):
                    _say(f"{kept}: the same command goes on from there")
                    raise
                _say(f"error: {error}. {kept}: the same command goes on from there")
                return 1
            scores = _assemble(images, model, store)
            write_scores(config.out, scores)
            store.remove()
    return _report(config.out, images, scores)


async def _score_missing(config: ScoreConfig, images: ImageList, servers: Servers, store: PartStore) -> None:
    """Fill `store` with the images that it lacks. Images in flight: at most calls x batch x servers."""
    limits = servers.model.limits
    jobs = []
    for image_id, path, size in zip(images.image_ids, images.paths, images.sizes, strict=True):
        if image_id in store.done:
            continue
        if size > limits.image_bytes:
            reason = (
                f"{size} bytes are over the server's limit of {limits.image_bytes} (--limits.image-bytes)"
            )
            store.add(Part(image_id, reason=reason))
        else:
            jobs.append(Job(image_id, path, size))
    # A fifth of the limit is left for ids and framing.
    chunks = split_jobs(
        jobs, min(config.batch, limits.request_images), min(_CALL_BYTES, limits.request_bytes * 4 // 5)
    )
    with ProgressBar("score", len(jobs)) as bar:

        async def work(first: int) -> None:
            for chunk in chunks:
                for part in await score_chunk(first, chunk, servers):
                    store.add(part)
                bar.advance(len(chunk), f"{store.failed} failed" if store.failed else "")

        workers = [asyncio.create_task(work(first)) for first in range(config.calls * len(servers.addresses))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def split_jobs(jobs: list[Job], count: int, size: int) -> Iterator[list[Job]]:
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


async def score_chunk(first: int, chunk: list[Job], servers: Servers) -> list[Part]:
    """Read and score one chunk, beginning with channel `first`; one part a job, in any order."""
    contents, parts = await asyncio.to_thread(read_jobs, chunk)
    if contents:
        parts += [_part(result) for result in await servers.score(first, contents)]
    return parts


def read_jobs(chunk: list[Job]) -> tuple[list[tuple[str, bytes]], list[Part]]:
    """The bytes of each image, and the parts of those that cannot be read."""
    contents, parts = [], []
    for job in chunk:
        try:
            contents.append((job.image_id, job.path.read_bytes()))
        except OSError as error:
            parts.append(Part(job.image_id, reason=f"cannot be read: {error.strerror}"))
    return contents, parts


def _part(result: Any) -> Part:
    if result.status.code == pb.ImageStatus.CODE_OK:
        return Part(result.id, tuple(result.logits), tuple(result.scores))
    name = pb.ImageStatus.Code.Name(result.status.code).removeprefix("CODE_").lower().replace("_", " ")
    return Part(result.id, reason=f"{name}: {result.status.message}")


def _assemble(images: ImageList, model: Any, store: PartStore) -> Scores:
    """The score file's content, in the order of the list, after the account is checked."""
    parts = [store.done[name] for name in images.image_ids if name in store.done]
    scored = [part for part in parts if not part.reason]
    failed = {part.image_id: part.reason for part in parts if part.reason}
    if len(scored) + len(failed) != len(images) or len(store.done) != len(images):
        raise RuntimeError(
            f"the account does not close: {len(images)} sent, {len(scored)} scored, {len(failed)} failed, "
            f"{len(store.done)} kept"
        )
    classes = len(model.classes)
    return Scores(
        classes=tuple(model.classes),
        image_ids=tuple(part.image_id for part in scored),
        logit=np.array([part.logit for part in scored], dtype=np.float32).reshape(-1, classes),
        score=np.array([part.score for part in scored], dtype=np.float32).reshape(-1, classes),
        metadata={
            "model_name": model.model.name,
            "model_version": model.model.version,
            "model_hash": model.model.hash,
            "preprocessing": model.preprocessing,
            "server_version": model.server_version,
            "data_fingerprint": images.fingerprint,
            "images_sent": str(len(images)),
            "images_scored": str(len(scored)),
            "images_failed": str(len(failed)),
            "thresholds": json.dumps(list(model.thresholds)),
        },
        failed=failed,
    )


def _report(out: Path, images: ImageList, scores: Scores) -> int:
    print(f"{out}: {len(images)} images sent, {len(scores)} scored, {len(scores.failed)} failed")
    if scores.failed:
        name, reason = next(iter(scores.failed.items()))
        print(f"{failures_path(out)}: the failed images with their reasons, such as {name}: {reason}")
    if len(scores):
        return 0
    _say("error: no image could be scored")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
