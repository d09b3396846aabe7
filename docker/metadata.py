"""Tell an environment of the project's name and version, as an installation would: the server says them to its callers.

    /venv/bin/python docker/metadata.py pyproject.toml

The code itself is copied beside the environment. Installing it would need a build backend that no lock file holds.
"""

import sys
import sysconfig
import tomllib
from pathlib import Path


def write_metadata(pyproject: Path, site_packages: Path) -> Path:
    """Write NAME-VERSION.dist-info for the project of `pyproject`; returns that folder."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    folder = site_packages / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    (folder / "RECORD").write_text(f"{folder.name}/METADATA,,\n{folder.name}/RECORD,,\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    write_metadata(Path(sys.argv[1]), Path(sysconfig.get_path("purelib")))
