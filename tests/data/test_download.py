"""The download against a real server on this machine: resume, broken connections, checksums, safe unpacking."""

import hashlib
import io
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.cli import run
from data.download import ARCHIVES, Archive, download, main
from data.errors import InputError

HOLDS = "VOC2012/ImageSets/Main/train.txt"


def make_tar(names: tuple[str, ...] = (f"VOCdevkit/{HOLDS}", "VOCdevkit/VOC2012/JPEGImages/a.jpg")) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 300_000
            tar.addfile(info, io.BytesIO(bytes(range(256)) * 1200))
    return stream.getvalue()


@dataclass
class Host:
    """What the server holds and how it misbehaves."""

    content: bytes = field(default_factory=make_tar)
    breaks: list[int] = field(default_factory=list)  # bytes after which each coming connection breaks off
    ranges: bool = True
    status: int = 200
    asked: list[str] = field(default_factory=list)  # the Range of each request, "" for none
    url: str = ""

    def archive(self, md5: str | None = None) -> Archive:
        return Archive(f"{self.url}/voc.tar", md5 or hashlib.md5(self.content).hexdigest(), HOLDS)


@pytest.fixture
def host() -> Iterator[Host]:
    state = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(asked[6:-1]) if asked and state.ranges else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if asked and state.ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.breaks.pop(0)] if state.breaks else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


UNPACKED = [HOLDS, "VOC2012/JPEGImages/a.jpg"]


def test_download__unpacks_without_the_outer_folder_and_leaves_nothing_else(
    host: Host, tmp_path: Path
) -> None:
    download([host.archive()], tmp_path)
    assert files(tmp_path) == UNPACKED
    assert (tmp_path / HOLDS).stat().st_size == 300_000


def test_download__skips_what_is_there(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download([host.archive()], tmp_path)
    download([host.archive()], tmp_path)
    assert len(host.asked) == 1
    assert "already: nothing to fetch" in capsys.readouterr().out


def test_download__goes_on_after_broken_connections(host: Host, tmp_path: Path) -> None:
    host.breaks = [100_000, 50_000]
    download([host.archive()], tmp_path, pause=0.0)
    assert host.asked == ["", "bytes=100000-", "bytes=150000-"]
    assert files(tmp_path) == UNPACKED


def test_download__goes_on_with_the_part_of_an_earlier_run(host: Host, tmp_path: Path) -> None:
    (tmp_path / "voc.tar.part").write_bytes(host.content[:1234])
    download([host.archive()], tmp_path)
    assert host.asked == ["bytes=1234-"]
    assert files(tmp_path) == UNPACKED


def test_download__part_that_was_whole(host: Host, tmp_path: Path) -> None:
    (tmp_path / "voc.tar.part").write_bytes(host.content)
    download([host.archive()], tmp_path)
    assert files(tmp_path) == UNPACKED


def test_download__host_without_ranges_starts_anew(host: Host, tmp_path: Path) -> None:
    host.ranges = False
    host.breaks = [100_000]
    download([host.archive()], tmp_path, pause=0.0)
    assert host.asked == ["", "bytes=100000-"]
    assert files(tmp_path) == UNPACKED


def test_download__wrong_checksum_sets_the_file_aside(host: Host, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"md5 of voc\.tar must be 0{32}, got [0-9a-f]{32}.*fetch it anew"):
        download([host.archive("0" * 32)], tmp_path)
    assert files(tmp_path) == ["voc.tar.bad"]
    download([host.archive()], tmp_path)
    assert len(host.asked) == 2


def test_download__archive_put_there_by_hand(host: Host, tmp_path: Path) -> None:
    (tmp_path / "voc.tar").write_bytes(host.content)
    download([host.archive()], tmp_path)
    assert host.asked == []
    assert files(tmp_path) == UNPACKED


def test_download__missing_on_the_host_is_not_tried_again(host: Host, tmp_path: Path) -> None:
    host.status = 404
    with pytest.raises(InputError, match=r"cannot fetch http://127.*404.*put it at .*voc\.tar and run this"):
        download([host.archive()], tmp_path, pause=0.0)
    assert len(host.asked) == 1


def test_download__host_that_fails_is_tried_five_times(host: Host, tmp_path: Path) -> None:
    host.status = 503
    with pytest.raises(InputError, match="503"):
        download([host.archive()], tmp_path, pause=0.0)
    assert len(host.asked) == 5


def test_download__nothing_may_leave_the_folder(host: Host, tmp_path: Path) -> None:
    host.content = make_tar((f"VOCdevkit/{HOLDS}", "../escaped.txt"))
    with pytest.raises(InputError, match="cannot be unpacked"):
        download([host.archive()], tmp_path / "out")
    assert not (tmp_path / "escaped.txt").exists()
    assert files(tmp_path) == ["out/voc.tar"]


def test_download__archive_of_something_else(host: Host, tmp_path: Path) -> None:
    host.content = make_tar(("other/readme.txt",))
    with pytest.raises(InputError, match="holds no folder VOC2012"):
        download([host.archive()], tmp_path)


def test_main__offline_says_what_to_do_and_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/VOCtrainval_11-May-2012.tar"
        monkeypatch.setitem(ARCHIVES, "2012", (Archive(url, "0" * 32, HOLDS),))
        assert run(main, ["--out", str(tmp_path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: cannot fetch {url} .*md5 0{{32}}", last)
    assert str(tmp_path / "VOCtrainval_11-May-2012.tar") in last


def test_archives__published_checksums() -> None:
    sums = [archive.md5 for year in ("2012", "2007") for archive in ARCHIVES[year]]
    assert sums == [
        "6cd6e144f989b92b3379bac3b3de84fd",
        "c52e279531787c972589f7e41ab4ae64",
        "b6e924de25625d8de591ea690078ad9f",
    ]
