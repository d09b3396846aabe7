"""Which version of a registered model is the champion, and why.

    promote("tailacc", "4", "if-better", examples)     a Promotion: moved or not, and the reason
    rollback("tailacc")                                champion <-> previous

Two models are compared on the images of one selection part, by their files as they lie in the registry, with ONNX
Runtime on the CPU as it would serve them: the champion falls only where the 95 % interval of the paired bootstrap of
the difference in mAP lies above 0. The new model was chosen on these images, often the best of many, which favours
it; a champion that came out of a search over the same images is favoured alike.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import open_cache
from data.errors import InputError, unknown
from data.image import fingerprint
from data.model_file import ModelInfo
from data.split import stratified_split
from train import checkpoint
from train.config import DataConfig, TrainConfig
from train.config_files import override, read_config
from train.examples import Examples, open_examples
from train.onnx_session import Floats, logits, open_model
from train.publish import CHAMPION, PREVIOUS, aliases, registry, set_alias
from train.selection_scores import Paired, SelectionScores, compare_map
from train.tracking import HASH_TAG
from tune.space import Policy

PROMOTED_AT = "promoted_at"
_TAG = "promotion."
# Images in memory at once beside the memory map: 128 of 384 px are 57 MB.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of a version that would be champion.

    Attributes:
        name: of the registered model.
        version: that was to be promoted.
        champion: the version that was champion before, "" where there was none.
        promoted: whether the alias moved.
        reason: a sentence for a person.
        paired: the new version's mAP minus the champion's; None where they were not compared.
    """

    name: str
    version: str
    champion: str
    promoted: bool
    reason: str
    paired: Paired | None = None

    def describe(self) -> str:
        """One line: who is champion now, and why."""
        if self.promoted:
            was = f" (before: version {self.champion}, now @{PREVIOUS})" if self.champion else ""
            return (
                f"champion   models:/{self.name}@{CHAMPION} is version {self.version} now{was}: {self.reason}"
            )
        stays = f"stays version {self.champion}" if self.champion else "is still no version"
        return f"champion   models:/{self.name}@{CHAMPION} {stays}: {self.reason}"


def promote(
    name: str, version: str, policy: Policy = "if-better", examples: Examples | None = None
) -> Promotion:
    """Make a version champion where the policy allows it; what was champion becomes `previous`.

    Every judgement is recorded as tags of the version (promotion.reason, .against, .difference, .low, .high), and
    promoted_at where the alias moved.

    Args:
        name: of the registered model.
        version: of it.
        policy: "if-better": only where its mAP is higher outside the noise, or where there is no champion;
            "always"; "never".
        examples: whose selection part decides under "if-better"; None: what the version's file says it was trained
            on, opened here.

    Raises:
        InputError: no store, an unknown name or version.
    """
    store = registry()
    _known(store, name, version)
    while True:
        champion = aliases(store, name).get(CHAMPION, "")
        judged = _judge(store, name, version, champion, policy, examples)
        # It takes minutes, in which another search may have moved the alias.
        if aliases(store, name).get(CHAMPION, "") == champion:
            break
    if policy != "never" and champion != version:
        _record(store, judged)
    if judged.promoted:
        _move(store, name, version)
    return judged


def rollback(name: str) -> Promotion:
    """Exchange champion and previous; a second time undoes the first.

    Raises:
        InputError: no store, an unknown name, or no previous champion.
    """
    store = registry()
    _known(store, name)
    known = aliases(store, name)
    champion, previous = known.get(CHAMPION, ""), known.get(PREVIOUS, "")
    if not champion or not previous:
        raise InputError(
            f"'{name}' has no {PREVIOUS if champion else CHAMPION} to roll back {'to' if champion else 'from'}; "
            f"choose a version (--list): --version N --policy always"
        )
    if champion == previous:
        raise InputError(
            f"champion and previous of '{name}' are both version {champion}: an earlier change was cut off, or was "
            "made elsewhere; choose a version (--list): --version N --policy always"
        )
    done = Promotion(name, previous, champion, True, f"rolled back from version {champion}")
    _record(store, done)
    # The champion first: whatever cuts this off, the version that is wanted is served.
    store.set_registered_model_alias(name, CHAMPION, previous)
    store.set_registered_model_alias(name, PREVIOUS, champion)
    store.set_model_version_tag(name, previous, PROMOTED_AT, _now())
    return done


def _judge(
    store: Any, name: str, version: str, champion: str, policy: Policy, examples: Examples | None
) -> Promotion:
    def said(promoted: bool, reason: str, paired: Paired | None = None) -> Promotion:
        return Promotion(name, version, champion, promoted, reason, paired)

    if policy == "never":
        return said(False, "nothing is promoted under the policy 'never'")
    if champion == version:
        return said(False, f"version {version} is the champion already")
    if policy == "always":
        return said(True, "the policy is 'always': not compared")
    if not champion:
        return said(True, "the first champion")
    with _fetched(name, version) as new, _fetched(name, champion) as old:
        new_info, old_info = _info_of(new), _info_of(old)
        examples = examples or _examples_of(new_info, name, version)
        if unfair := _unfair(new_info, old_info, version, champion, examples):
            return said(
                False,
                f"not comparable: {unfair}. --promote always (python tune/promote.py --name {name} --version {version} "
                "--policy always) makes it champion all the same",
            )
        scores = [_score(path, info, examples) for path, info in ((new, new_info), (old, old_info))]
    paired = compare_map(scores[:1], scores[1:])
    figures = (
        f"mAP {scores[0].map():.4f} against {scores[1].map():.4f} of version {champion} on the same "
        f"{len(examples.selection)} images, difference {paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
    )
    verdict = {1: "better outside the noise", 0: "a tie, which keeps the champion", -1: "worse"}
    return said(paired.verdict > 0, f"{verdict[paired.verdict]}: {figures}", paired)


def _unfair(new: ModelInfo, old: ModelInfo, version: str, champion: str, examples: Examples) -> str:
    """Why the two cannot be compared on this selection part; "" where they can."""
    if new.classes != old.classes:
        return f"other classes ({_difference(new.classes, old.classes)})"
    if new.classes != examples.labels.classes:
        return f"the data have other classes ({_difference(new.classes, examples.labels.classes)})"
    for number, info in ((version, new), (champion, old)):
        # The fingerprint holds the size, in which the two may differ: each gets its own pixels.
        if info.preprocessing != fingerprint(info.size):
            return (
                f"version {number} was trained with preprocessing {info.preprocessing}, but this installation gives "
                f"{fingerprint(info.size)} at {info.size} px: its pixels differ"
            )
        if seen := _trained_on_selection(info, examples):
            return f"version {number} {seen}"
    return ""


def _trained_on_selection(info: ModelInfo, examples: Examples) -> str:
    """Why images of the selection part may have trained this model, which would flatter it; "" where none has."""
    labels, data = examples.labels, json.loads(info.config).get("data", {})
    if info.data_fingerprint != labels.fingerprint() or "selection" not in data:
        return (
            f"was trained on other data (fingerprint {info.data_fingerprint or 'unknown'}, here "
            f"{labels.fingerprint()}): images of this selection part may be among them"
        )
    share, seed = data["selection"], data["selection_seed"]
    trained, _ = stratified_split(labels.target, labels.mask, share, seed)
    common = len(np.intersect1d(trained, examples.selection))
    if not common:
        return ""
    return (
        f"was trained on {common} of the {len(examples.selection)} images of this selection part (its own: share "
        f"{share}, seed {seed})"
    )


def _difference(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    only = [name for name in one if name not in other], [name for name in other if name not in one]
    if not any(only):
        return "the same names in another order"
    return "; ".join(
        f"only {whose}: {', '.join(names)}"
        for whose, names in zip(("the new", "the other"), only, strict=True)
        if names
    )


def _score(path: Path, info: ModelInfo, examples: Examples) -> SelectionScores:
    """The selection part by the model file at `path`, each image at the size of that model."""
    labels, index, cache = examples.labels, examples.selection, examples.cache
    pixels, rows = cache.pixels, index
    if info.size != pixels.shape[1]:
        part = labels.subset(index, f"{labels.name}, selection part")
        pixels, rows = open_cache(part, info.size, cache.path.parent).pixels, np.arange(len(index))
    session = open_model(path)
    parts: list[Floats] = [
        logits(session, pixels[rows[start : start + _ROWS]]) for start in range(0, len(rows), _ROWS)
    ]
    return examples.selection_scores(np.concatenate(parts))


@contextmanager
def _fetched(name: str, version: str) -> Iterator[Path]:
    """The model file of a version, in a temporary folder."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix="tailacc-model-") as folder:
        mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=folder)
        files = sorted(Path(folder).rglob("*.onnx"))
        if len(files) != 1:
            raise InputError(f"models:/{name}/{version} must hold one .onnx file, found {len(files)}")
        yield files[0]


def _info_of(path: Path) -> ModelInfo:
    return ModelInfo.from_metadata(open_model(path).get_modelmeta().custom_metadata_map, path.name)


def _examples_of(info: ModelInfo, name: str, version: str) -> Examples:
    where = f"the model file of models:/{name}/{version}"
    data = json.loads(info.config).get("data")
    if data is None:
        raise InputError(
            f"{where} does not say what it was trained on; give --run DIR, whose selection part decides"
        )
    try:
        return open_examples(override(DataConfig(), data, where))
    except InputError as error:
        raise InputError(f"{error}; --run DIR names the data where they lie elsewhere now") from error


def examples_of_run(folder: Path) -> Examples:
    """The data of the run in `folder`, which need not be tracked nor finished."""
    return open_examples(read_config(folder / checkpoint.CONFIG, TrainConfig()).data)


def _known(store: Any, name: str, version: str = "") -> None:
    """Raise `InputError` for a name or a version that the registry does not have."""
    from mlflow.exceptions import MlflowException

    try:
        store.get_registered_model(name)
        if version:
            store.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        names = [model.name for model in store.search_registered_models()]
        if name in names:
            versions = [str(found.version) for found in store.search_model_versions(f"name = '{name}'")]
            raise unknown(f"version of '{name}':", version, versions) from error
        if names:
            raise unknown("registered model", name, names) from error
        raise InputError(
            f"no model '{name}' in this store, nor any other; python tune/search.py registers its best, and "
            "python train/export.py --register the model of one run"
        ) from error


def _record(store: Any, judged: Promotion) -> None:
    """The judgement as tags; figures of an earlier one go."""
    values = {"reason": judged.reason, "against": judged.champion or "none"}
    if judged.paired:
        for key in ("difference", "low", "high"):
            values[key] = f"{getattr(judged.paired, key):+.4f}"
    before = store.get_model_version(judged.name, judged.version).tags
    for key in before:
        if key.startswith(_TAG) and key.removeprefix(_TAG) not in values:
            store.delete_model_version_tag(judged.name, judged.version, key)
    for key, value in values.items():
        store.set_model_version_tag(judged.name, judged.version, _TAG + key, value)


def _move(store: Any, name: str, version: str) -> None:
    set_alias(store, name, CHAMPION, version)
    store.set_model_version_tag(name, version, PROMOTED_AT, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def list_versions(name: str) -> list[str]:
    """The versions of a registered model as lines under a head, the newest first.

    Raises:
        InputError: no store, or an unknown name.
    """
    store = registry()
    _known(store, name)
    held = aliases(store, name)
    rows = [("version", "alias", "selection mAP", "data", "SHA-256", "registered", "promoted", "model")]
    found = store.search_model_versions(f"name = '{name}'")
    for one in sorted(found, key=lambda one: -int(one.version)):
        tags, version = one.tags, str(one.version)
        bounds = (
            f" [{tags['selection_map_low']}, {tags['selection_map_high']}]"
            if "selection_map_low" in tags
            else ""
        )
        rows.append(
            (
                version,
                " ".join(f"@{alias}" for alias, where in sorted(held.items()) if where == version),
                tags.get("selection_map", "") + bounds,
                tags.get("data", ""),
                tags.get(HASH_TAG, "")[:12],
                datetime.fromtimestamp(one.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
                tags.get(PROMOTED_AT, ""),
                tags.get("model", ""),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
