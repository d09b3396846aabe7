"""The JSON and TOML form of a configuration."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from data.errors import InputError, unknown
from train.config import TrainConfig

T = TypeVar("T")


def to_dict(config: object) -> dict[str, Any]:
    """Nested plain values, as they go into JSON."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        out[item.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    """As JSON gives it back; infinity, which JSON lacks, as text."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) or value == math.inf else value


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer": {"lr": 1}}` -> `{"optimizer.lr": 1}`, as MLflow's parameters are named."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def override(base: T, values: dict[str, Any], where: str) -> T:
    """`base` with the nested `values` put in; an unknown name or a wrong type is an `InputError`.

    Args:
        base: a configuration dataclass.
        values: nested plain values, as JSON or TOML give them; what is absent keeps the base's value.
        where: names the source in errors.
    """
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown(f"setting in {where}:", key, hints)
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise InputError(f"{where}: '{key}' must be a table of settings, got {value!r}")
            changes[key] = override(current, value, f"{where}, {key}")
        else:
            changes[key] = _convert(value, hints[key], f"{where}: '{key}'")
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _convert(value: Any, hint: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in choices:
            raise unknown(where, value, choices)
        return value
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(choice for choice in choices if choice is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} must be a list, got {value!r}")
        of = choices if Ellipsis not in choices else choices[:1] * len(value)
        return tuple(_convert(item, kind, where) for item, kind in zip(value, of, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and (type(value) is int or value == "inf"):
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{where} must be a {hint.__name__}, got {value!r}")
    return value


def read_config(path: Path, base: TrainConfig) -> TrainConfig:
    """`base` with the settings of a .json or .toml file put in."""
    if not path.is_file():
        raise InputError(f"no configuration file at {path}")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{path} is not valid {path.suffix.lstrip('.').upper() or 'JSON'}: {error}"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a table of settings, got a {type(values).__name__}")
    return override(base, values, str(path))


def write_config(path: Path, config: TrainConfig) -> None:
    """Save the resolved configuration, readable by `read_config`."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
