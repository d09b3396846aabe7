#!/usr/bin/env bash
# Build .venv from nothing but a Python 3.11 to 3.13; `make setup` calls this when something changed.
#
#   PYTHON=python3.13 requirements/install.sh
#
# Packages come from requirements/dev.txt, pinned and checked by hash. Where that file does not apply (it
# covers Linux on x86_64) pip works the versions out from pyproject.toml instead, and a notice says so.
set -euo pipefail
cd "$(dirname "$0")/.."

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo "not found"; }

choose_python() {
    if [[ -n "${PYTHON:-}" ]]; then
        supported "$PYTHON" && echo "$PYTHON" && return
        echo "error: PYTHON=$PYTHON is $(version_of "$PYTHON"); Python 3.11, 3.12 or 3.13 is needed" >&2
        return 2
    fi
    for name in python3 python3.13 python3.12 python3.11; do
        supported "$name" && echo "$name" && return
    done
    echo "error: python3 is $(version_of python3) and no python3.13, python3.12 or python3.11 was found;" \
        "install one of them, or name it: make setup PYTHON=/path/to/python3" >&2
    return 2
}

# An environment that works is kept, unless another Python is asked for.
if ! supported .venv/bin/python ||
    [[ -n "${PYTHON:-}" && "$(version_of "$PYTHON")" != "$(version_of .venv/bin/python)" ]]; then
    python=$(choose_python)
    echo "setup: .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || {
        echo "error: $python cannot make an environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    }
fi
python=.venv/bin/python
if [[ "$($python -m uv --version 2>/dev/null)" != "uv $(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements/uv.txt)"* ]]; then
    $python -m ensurepip --upgrade >/dev/null
    $python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
fi

if [[ "$(uname -sm)" == "Linux x86_64" ]]; then
    # Compiled once here: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would do it again
    # (import torch: 6.0 s of a core, 2.8 compiled; every trial of a search is a process).
    $python -m uv pip sync --quiet --compile-bytecode --python $python --require-hashes requirements/dev.txt
    $python -m uv pip install --quiet --python $python --no-deps --editable .
else
    echo "setup: requirements/dev.txt covers Linux x86_64, and this is $(uname -sm): resolving from pyproject.toml"
    $python -m uv pip install --quiet --compile-bytecode --python $python --editable '.[dev]'
fi
echo "setup: done"
