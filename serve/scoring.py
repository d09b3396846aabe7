"""Score a set of images through the servers into a score file; a killed run goes on where it was.

Memory does not grow with the number of images: the listing is bytes (`serve.sources`), outcomes go to disk
(`serve.parts`), and the score file is written from there in row groups. In flight are at most calls x batch x
servers images and --inflight-bytes bytes.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.image import fingerprint
from data.progress import ProgressBar
from data.scores import ScoreWriter, failures_path
from serve.config import ScoreConfig
from serve.manifest import Record, manifest_path
from serve.parts import Part, PartStore, open_parts, parts_folder
from serve.remote import CallFailed, ModelChanged, Servers, named
from serve.sending import Job, Sender, split_jobs
from serve.sources import ImageList, find_images

# A call of ours stays below this even where the server would take more: 16 photographs rarely pass it.
_CALL_BYTES = 8 << 20
# Of one row group of the score file, both of which it holds in memory.
_GROUP_BYTES, _GROUP_ROWS = 4 << 20, 16384


async def score(config: ScoreConfig) -> int:
    """Score all images of `config` and print where the results are. Returns the exit code.

    Raises:
        InputError: no server, no image, or parts of another run.
    """
    config.check()
    if config.out.is_dir():
        raise InputError(f"--out must be a file such as {config.out / 'scores.parquet'}, got a folder")
    images = find_images(config.images, config.split)
    pixels = config.send == "pixels"
    async with Servers(config.connection, config.channels, config.allow_model_change, pixels) as servers:
        model = servers.model
        if pixels:
            require_same_preprocessing(model)
        _say(
            f"images  {len(images)} of {images.name}\n"
            f"model   {named(model.model)}, {len(model.classes)} classes\n"
            f"servers {', '.join(servers.addresses)}; at most {config.calls * len(servers.addresses)} calls "
            f"of {min(config.batch, servers.request_images)} images and {config.inflight_bytes} bytes in flight"
        )
        key = {
            "images": len(images),
            "image_order": images.order,
            "data_fingerprint": images.fingerprint,
            "classes": list(model.classes),
            "model_version": model.model.version,
            "model_hash": model.model.hash,
            "preprocessing": model.preprocessing,
        }
        with open_parts(config.out, key, len(images), config.restart, config.allow_model_change) as store:
            record = Record(config, images, servers, store)
            if store.resumed:
                _say(f"going on from {store.resumed} images in {store.folder}")
            try:
                await _score_missing(config, images, servers, store, record)
            except (CallFailed, ModelChanged, OSError, asyncio.CancelledError) as error:
                kept = f"{store.done} of {len(images)} images are kept in {parts_folder(config.out)}"
                if isinstance(error, asyncio.CancelledError):
                    record.ended = "interrupted"
                    _say(f"{kept}: the same command goes on from there")
                    raise
                record.ended = f"stopped: {error}"
                _say(f"error: {error}. {kept}: the same command goes on from there")
                return 1
            publish(config.out, images, model, store, record)
            record.publish()
            code = _report(config.out, images, store, record)
            store.remove()
    return code


def require_same_preprocessing(model: Any) -> None:
    """Raise `InputError` where this machine would make other pixels than the model was trained on."""
    here = fingerprint(model.image_size)
    if here != model.preprocessing:
        raise InputError(
            f"--send pixels needs the decode and resize of the model, {model.preprocessing}, and this machine has "
            f"{here} (other versions of the image libraries): scores would differ; use --send file"
        )


async def _score_missing(
    config: ScoreConfig, images: ImageList, servers: Servers, store: PartStore, record: Record
) -> None:
    """Fill `store` with the images that it lacks."""
    pixels = servers.model.image_size if config.send == "pixels" else 0
    count = min(config.batch, servers.request_images)
    size = min(_CALL_BYTES, servers.request_bytes, config.inflight_bytes)
    with (
        Sender(servers, pixels, config.inflight_bytes) as sender,
        ProgressBar("score", len(images) - store.resumed) as bar,
    ):
        chunks = split_jobs(_jobs(images, servers, store, bar, pixels), count, size)

        async def work() -> None:
            for chunk in chunks:
                for job, part in await sender.score(chunk):
                    store.add(job.row, part if part.reason else replace(part, model=record.place(part.model)))
                bar.advance(len(chunk), f"{store.failed} failed" if store.failed else "")

        workers = [asyncio.create_task(work()) for _ in range(config.calls * len(servers.addresses))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _jobs(
    images: ImageList, servers: Servers, store: PartStore, bar: ProgressBar, pixels: int
) -> Iterator[Job]:
    """The images to send. One that is too large for the servers fails here, without being read."""
    for row in map(int, store.missing()):
        size = int(images.sizes[row])
        if size > servers.image_bytes and not pixels:
            store.add(
                row,
                Part(
                    reason=f"{size} bytes are over the server's limit of {servers.image_bytes} "
                    "(--limits.image-bytes)"
                ),
            )
            bar.advance()
            continue
        yield Job(row, images.image_id(row), images.path(row), size + 3 * pixels * pixels)


def publish(out: Path, images: ImageList, model: Any, store: PartStore, record: Record) -> None:
    """Write the score file in the order of the list, in row groups, after the account is checked.

    Raises:
        RuntimeError: images sent are not scored + failed.
    """
    scored = sum(store.scored_by(place) for place in range(len(record.models)))
    if scored + store.failed != len(images) or store.resumed + store.added != len(images):
        raise RuntimeError(
            f"the account does not close: {len(images)} sent, {scored} scored, {store.failed} failed, "
            f"{store.resumed} kept from before, {store.added} added"
        )
    keys = ("name", "version", "hash", "preprocessing", "server_version")
    name, version, digest, preprocessing, server_version = (_listed(record.used(), key) for key in keys)
    metadata = {
        "model_name": name,
        "model_version": version,
        "model_hash": digest,
        "preprocessing": preprocessing,
        "server_version": server_version,
        "data_fingerprint": images.fingerprint,
        "images_sent": str(len(images)),
        "images_scored": str(scored),
        "images_failed": str(store.failed),
        "thresholds": json.dumps(list(model.thresholds)),
        # Of one model only: figures of one say nothing of scores that several gave.
        "gate": model.gate if digest == model.model.hash else "",
    }
    classes = tuple(model.classes)
    step = max(1, min(_GROUP_ROWS, _GROUP_BYTES // (8 * len(classes))))
    with ScoreWriter(out, classes, metadata) as writer:
        for start in range(0, len(images), step):
            rows, numbers = store.rows(start, min(start + step, len(images)))
            if len(rows):
                writer.write([images.image_id(row) for row in rows.tolist()], numbers[:, 0], numbers[:, 1])
        for row, reason in store.reasons():
            writer.fail(images.image_id(row), reason)
        writer.publish()


def _listed(models: list[dict[str, Any]], key: str) -> str:
    """What the models have under `key`; where the model changed, each value once, with commas."""
    return ",".join(dict.fromkeys(model[key] for model in models))


def _report(out: Path, images: ImageList, store: PartStore, record: Record) -> int:
    scored = len(images) - store.failed
    print(f"{out}: {len(images)} images sent, {scored} scored, {store.failed} failed")
    print(f"{manifest_path(out)}: the model, the servers, the options and the calls behind it")
    if len(record.used()) > 1:
        _say(
            f"warning: {out} holds scores of {len(record.used())} models; the manifest has the images of each"
        )
    example = next(store.reasons(), None)
    if example:
        text = f"{images.image_id(example[0])}: {example[1]}"
        print(f"{failures_path(out)}: the failed images with their reasons, such as {text}")
    if scored:
        return 0
    _say("error: no image could be scored")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
