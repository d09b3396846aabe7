import subprocess
import sys

import pytest

from data.cli import run
from data.errors import InputError


def test_run__exit_code_of_the_body() -> None:
    assert run(lambda arguments: None, []) == 0
    assert run(lambda arguments: 7, []) == 7


def test_run__arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    run(seen.append, ["--a", "1"])
    monkeypatch.setattr(sys, "argv", ["program", "--b"])
    run(seen.append)
    assert seen == [["--a", "1"], ["--b"]]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            InputError("unknown loss 'x'; choose one of: bce"),
            2,
            "error: unknown loss 'x'; choose one of: bce",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("broken"), 1, "error: RuntimeError: broken (TAILACC_DEBUG=1 shows where)"),
    ],
)
def test_run__one_line_on_stderr(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TAILACC_DEBUG", raising=False)

    def body(arguments: list[str]) -> int:
        raise error

    assert run(body, []) == code
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_run__debug_shows_the_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILACC_DEBUG", "1")

    def body(arguments: list[str]) -> int:
        raise RuntimeError("broken")

    assert run(body, []) == 1
    assert caplog.records[0].exc_info is not None


def test_run__usage_errors_pass_through() -> None:
    def body(arguments: list[str]) -> int:
        raise SystemExit(2)

    with pytest.raises(SystemExit) as caught:
        run(body, [])
    assert caught.value.code == 2


def test_run__a_reader_that_has_gone() -> None:
    script = """
import sys
from data.cli import run
def body(arguments):
    for i in range(100_000):
        print(i)
raise SystemExit(run(body, []))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(30) == 1
