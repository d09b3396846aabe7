"""Fetch the real VOC data, check it, and unpack it where everything here reads it.

    python data/download.py --out voc                  VOC2012 train and val: 2.0 GB, makes voc/VOC2012
    python data/download.py --out voc --year 2007      VOC2007 trainval and test: 0.9 GB, makes voc/VOC2007

Stopped half-way it goes on where it was. What is there already is not fetched again. The host is slow and at
times away; then the message says what to fetch by another way and where to put it: an archive in the folder is
checked and unpacked like one that was fetched here.
"""

import hashlib
import http.client
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.cli import run
from data.errors import InputError
from data.progress import ProgressBar

_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
_BLOCK = 2**20
_TRIES = 5  # in a row without a single new byte
_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True, slots=True)
class Archive:
    """One file to fetch.

    Attributes:
        url: where it is; the last part is the file's name here too.
        md5: its checksum, 32 hex digits, as published with it.
        holds: a file or folder below the output folder that is there only once it has been unpacked.
    """

    url: str
    md5: str
    holds: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "2012": (
        Archive(
            f"{_HOST}/voc2012/VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd",
            "VOC2012/ImageSets/Main/trainval.txt",
        ),
    ),
    "2007": (
        Archive(
            f"{_HOST}/voc2007/VOCtrainval_06-Nov-2007.tar",
            "c52e279531787c972589f7e41ab4ae64",
            "VOC2007/ImageSets/Main/trainval.txt",
        ),
        Archive(
            f"{_HOST}/voc2007/VOCtest_06-Nov-2007.tar",
            "b6e924de25625d8de591ea690078ad9f",
            "VOC2007/ImageSets/Main/test.txt",
        ),
    ),
}


def download(archives: Sequence[Archive], out: Path, pause: float = 2.0) -> None:
    """Fetch, check and unpack each archive so that `out/VOC2012` (or VOC2007) is a devkit.

    Args:
        archives: see `ARCHIVES`.
        out: the folder for the archive and for what it holds.
        pause: seconds before the second try; it doubles with each try that brings nothing.

    Raises:
        InputError: the host cannot be reached, a checksum is wrong, the disk is too small.
    """
    out.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        if (out / archive.holds).exists():
            print(f"{archive.holds} is in {out} already: nothing to fetch")
            continue
        path = out / archive.name
        if not path.is_file():
            _fetch(archive, path, pause)
        _check(archive, path)
        _unpack(path, out, archive)
        path.unlink()
        print(f"{out / archive.holds.split('/')[0]} is ready")


def _fetch(archive: Archive, path: Path, pause: float) -> None:
    """Bring `path` from the host by way of `<name>.part`, which a later call goes on with."""
    partial = path.with_name(path.name + ".part")
    tries, answered = 0, False
    while True:
        before = partial.stat().st_size if partial.is_file() else 0
        try:
            _receive(archive, partial, before)
            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError):
                refused = error.code < 500
            else:  # no answer at all, not even to an earlier try: no network here, or no host there
                refused = isinstance(error, urllib.error.URLError) and not answered
            here = partial.stat().st_size if partial.is_file() else 0
            answered = answered or here > before
            tries = 1 if here > before else tries + 1
            if refused or tries >= _TRIES:
                raise _by_hand(archive, path, error) from error
            print(f"{archive.name}: {error}; going on from byte {here:,}", file=sys.stderr)
            time.sleep(pause * 2 ** (tries - 1))
    partial.rename(path)


def _receive(archive: Archive, partial: Path, start: int) -> None:
    """One connection: append what the host sends from byte `start` on. Raises where it ends too early."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(archive.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing lies behind what is here: all of it is here
            return
        raise
    with response:
        if response.status != 206:  # the host sends all of it, whatever was asked
            start = 0
        left = int(response.headers.get("Content-Length", 0))
        _require_space(archive, partial.parent, left)
        total = round((start + left) / _BLOCK)
        with partial.open("ab" if start else "wb") as stream, ProgressBar(archive.name, total, "MiB") as bar:
            bar.advance(start // _BLOCK)
            while block := response.read(_BLOCK):
                stream.write(block)
                bar.advance(len(block) // _BLOCK)
                left -= len(block)
    if left > 0:
        raise ConnectionError(f"the connection broke off {left:,} bytes before the end")


def _require_space(archive: Archive, folder: Path, left: int) -> None:
    free = shutil.disk_usage(folder).free
    if left > free:
        raise InputError(
            f"{archive.name} needs {left / 1e6:,.0f} MB more in {folder}, which has {free / 1e6:,.0f} MB free"
        )


def _by_hand(archive: Archive, path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot fetch {archive.url} ({error}); fetch it by another way (md5 {archive.md5}), put it at {path} "
        "and run this again to check and unpack it"
    )


def _check(archive: Archive, path: Path) -> None:
    """Compare the checksum; a wrong file is set aside as `<name>.bad`, so that the next run fetches anew."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        aside = path.with_name(path.name + ".bad")
        path.replace(aside)
        raise InputError(
            f"the md5 of {path.name} must be {archive.md5}, got {found}; it lies at {aside} now, "
            "run this again to fetch it anew"
        )


def _unpack(path: Path, out: Path, archive: Archive) -> None:
    """Unpack into a folder beside and move VOC2012 (or VOC2007) from there, wherever the archive has it."""
    year = archive.holds.split("/", 1)[0]
    print(f"unpacking {path.name} ...")
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=out) as folder:
        try:
            with tarfile.open(path) as tar:
                # "data" lets nothing leave the folder: no "..", no links to outside, no devices.
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path} cannot be unpacked: {error}") from error
        found = next((p for p in sorted(Path(folder).rglob(year)) if (p / "ImageSets").is_dir()), None)
        if found is None:
            raise InputError(f"{path} holds no folder {year} with ImageSets")
        # Files that are there already (VOC2007 comes in two archives) are added to, folder by folder.
        shutil.copytree(found, out / year, dirs_exist_ok=True, copy_function=shutil.move)


@dataclass(frozen=True)
class Options:
    """Fetch the real VOC data, check it and unpack it."""

    out: Path
    """Folder that will hold VOC2012/ (or VOC2007/)."""
    year: Literal["2012", "2007"] = "2012"
    """Which challenge: 2012 is train and val, 2007 is trainval and test."""


def main(arguments: list[str]) -> int:
    import tyro

    options = tyro.cli(Options, prog="data/download.py", args=arguments)
    download(ARCHIVES[options.year], options.out)
    print(f"use it with --data.root {options.out}, or export VOC_ROOT={options.out}")
    return 0


def cli() -> None:
    raise SystemExit(run(main))


if __name__ == "__main__":
    cli()
