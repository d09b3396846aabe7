"""What docker-compose.yml and docker/Dockerfile say, for the rehearsal and the tests.

services = read_compose(root, {"DATA_DIR": "/data"})["services"]
image = read_image(root, "serve")
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def read_defaults(root: Path) -> dict[str, str]:
    """The variables of .env.example."""
    lines = (root / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def variables(value: Any) -> dict[str, str | None]:
    """Name -> default of each ${NAME:-default} in a value at any depth; None where it has no default."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {name: default for item in value for name, default in variables(item).items()}
    found = _VARIABLE.finditer(value) if isinstance(value, str) else ()
    return {match["name"]: match["rest"] if match["kind"] == "-" else None for match in found}


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """The value with its ${NAME}, ${NAME:-default} and ${NAME:?reason} replaced at any depth, as compose does.

    Raises:
        KeyError: a variable without a default is not set.
    """

    def replace(match: re.Match[str]) -> str:
        given = environment.get(match["name"], "")
        if not given and match["kind"] != "-":
            raise KeyError(f"{match['name']} is not set: {match['rest']}")
        return given or match["rest"]

    if isinstance(value, dict):
        return {key: interpolate(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environment) for item in value]
    return _VARIABLE.sub(replace, value) if isinstance(value, str) else value


def read_compose(root: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """docker-compose.yml with its variables replaced: by `environment`, then by .env.example."""
    parsed = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))
    return dict(interpolate(parsed, read_defaults(root) | dict(environment)))


@dataclass(frozen=True, slots=True)
class Image:
    """What a target of docker/Dockerfile holds beside its packages.

    Attributes:
        environment: of ENV.
        copies: (path in the repository, path in the image).
        folder: of WORKDIR.
        user: of USER.
    """

    environment: dict[str, str]
    copies: tuple[tuple[str, str], ...]
    folder: str
    user: str


def read_image(root: Path, target: str) -> Image:
    """One target of docker/Dockerfile with what it stands on. Raises `KeyError` where there is none."""
    text = (root / "docker/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stages: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "FROM":
            stages[words[3]] = [words]
        elif words and stages:
            stages[list(stages)[-1]].append(words)
    chain = [stages[target]]
    while (below := chain[0][0][1]) in stages:
        chain.insert(0, stages[below])
    environment: dict[str, str] = {}
    copies: list[tuple[str, str]] = []
    folder, user = "/", "root"
    for words in (words for stage in chain for words in stage):
        if words[0] == "ENV":
            environment |= [words[1].split("=", 1)]
        elif words[0] == "COPY" and not words[1].startswith("--from"):
            copies += [(source, words[-1]) for source in words[1:-1]]
        elif words[0] == "WORKDIR":
            folder = words[1]
        elif words[0] == "USER":
            user = words[1]
    return Image(environment, tuple(copies), folder, user)


def start_order(services: Mapping[str, Any]) -> list[str]:
    """The services, each after those that it depends on."""
    order: list[str] = []
    while len(order) < len(services):
        ready = [
            name
            for name, service in services.items()
            if name not in order and set(service.get("depends_on", {})) <= set(order)
        ]
        if not ready:
            raise ValueError(f"depends_on goes round in {sorted(set(services) - set(order))}")
        order += ready
    return order


def seconds(text: str) -> float:
    """A duration of the compose file, such as 90s or 2m."""
    return float(text[:-1]) * {"s": 1, "m": 60}[text[-1]]
