"""Champion, previous and rollback, with tiny models in a real registry."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from train.examples import Examples
from train.publish import Exported, aliases, register_model, registry
from tune import promotion
from tune.promotion import promote, rollback

Put = Callable[..., str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder))
        patch.chdir(folder)
        yield folder


@pytest.fixture
def put(store: Path, tiny: Callable[..., Exported], request: pytest.FixtureRequest) -> Put:
    """Registers a tiny model file under the test's own name; returns the version."""
    count = iter(range(100))

    def register(noise: float, row: int = 4, **changed: Any) -> str:
        path = store / f"{request.node.originalname}{next(count)}.onnx"
        client = registry()
        run = client.create_run("0").info.run_id
        return register_model(tiny(path, noise, row, run_id=run, **changed), request.node.originalname, "")

    return register


def name_of(request: pytest.FixtureRequest) -> str:
    return str(request.node.originalname)


def test_rollback__twice_is_as_before(put: Put, request: pytest.FixtureRequest) -> None:
    name, one, two = name_of(request), put(1.0), put(2.0)
    assert not promote(name, one, "never").promoted
    with pytest.raises(InputError, match=f"'{name}' has no champion to roll back from; choose a version"):
        rollback(name)
    done = promote(name, one)
    assert (done.promoted, done.reason) == (True, "the first champion")
    with pytest.raises(InputError, match=f"'{name}' has no previous to roll back to; choose a version"):
        rollback(name)
    promote(name, two, "always")
    back = rollback(name)
    assert (back.version, back.champion) == (one, two)
    assert aliases(registry(), name) == {"champion": one, "previous": two}
    assert rollback(name).version == two
    assert aliases(registry(), name) == {"champion": two, "previous": one}


def test_promote__a_better_model_moves_and_a_worse_one_stays(
    put: Put, signs: Examples, request: pytest.FixtureRequest
) -> None:
    name, poor, good = name_of(request), put(3.0), put(0.0)
    assert promote(name, poor, examples=signs).champion == ""
    done = promote(name, good, examples=signs)
    assert done.promoted
    assert done.paired is not None
    assert done.paired.low > 0
    assert aliases(registry(), name) == {"champion": good, "previous": poor}
    tags = registry().get_model_version(name, good).tags
    assert tags["promotion.against"] == poor
    assert tags["promotion.reason"] == done.reason
    assert float(tags["promotion.low"]) > 0
    assert tags["promoted_at"]
    assert promote(name, good, examples=signs).reason == f"version {good} is the champion already"

    worse = put(3.0, row=8)
    kept = promote(name, worse, examples=signs)
    assert not kept.promoted
    assert kept.reason.startswith("worse: mAP 0.")
    assert aliases(registry(), name) == {"champion": good, "previous": poor}
    tags = registry().get_model_version(name, worse).tags
    assert float(tags["promotion.high"]) < 0
    assert "promoted_at" not in tags
    # Told to, it moves, and the figures of the judgement that did not decide go.
    assert promote(name, worse, "always").promoted
    tags = registry().get_model_version(name, worse).tags
    assert tags["promotion.reason"] == "the policy is 'always': not compared"
    assert "promotion.high" not in tags


def test_promote__a_tie_keeps_the_champion(put: Put, signs: Examples, request: pytest.FixtureRequest) -> None:
    name, one, other = name_of(request), put(1.5, row=4), put(1.5, row=8)
    promote(name, one)
    judged = promote(name, other)  # the data come from the file
    assert judged.paired is not None
    assert judged.paired.low < 0 < judged.paired.high
    assert not judged.promoted
    assert judged.reason.startswith("a tie, which keeps the champion: mAP")
    assert f"[{judged.paired.low:+.4f}, {judged.paired.high:+.4f}]" in judged.reason
    assert aliases(registry(), name) == {"champion": one}
    # Never: not even recorded.
    before = dict(registry().get_model_version(name, other).tags)
    assert not promote(name, other, "never").promoted
    assert registry().get_model_version(name, other).tags == before


def test_promote__models_of_two_sizes_each_get_their_own_pixels(
    put: Put, signs: Examples, request: pytest.FixtureRequest
) -> None:
    name, small, large = name_of(request), put(3.0), put(0.0, size=32)
    promote(name, small)
    judged = promote(name, large, examples=signs)
    assert judged.promoted
    assert "mAP 1.0000 against" in judged.reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"classes": ("person", "cat", "cow", "rare")},
            "other classes (only the new: cow; only the other: dog)",
        ),
        ({"classes": ("cat", "person", "dog", "rare")}, "other classes (the same names in another order)"),
        ({"preprocessing": "0123"}, "was trained with preprocessing 0123, but this installation gives"),
        ({"data_fingerprint": "4567"}, "was trained on other data (fingerprint 4567, here"),
        ({"config": json.dumps({"data": {"selection": 0.5, "selection_seed": 3}})}, "was trained on "),
        ({"config": "{}"}, "images of this selection part may be among them"),
    ],
)
def test_promote__what_cannot_be_compared_is_refused_with_the_way_round(
    changed: dict[str, Any], reason: str, put: Put, signs: Examples, request: pytest.FixtureRequest
) -> None:
    name = name_of(request)
    if name not in [model.name for model in registry().search_registered_models()]:
        promote(name, put(1.0))
    (champion,) = aliases(registry(), name).values()
    other = put(0.0, **changed)
    judged = promote(name, other, examples=signs)
    assert not judged.promoted
    assert judged.reason.startswith("not comparable: ")
    assert reason in judged.reason
    assert f"python tune/promote.py --name {name} --version {other} --policy always" in judged.reason
    assert aliases(registry(), name) == {"champion": champion}


def test_promote__cut_off_between_the_aliases_a_champion_is_left(
    put: Put, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name_of(request)
    one, two = put(1.0), put(2.0)
    promote(name, one)
    kind = type(registry())
    move = kind.set_registered_model_alias

    def cut_off_after(count: int) -> None:
        left = iter([True] * count)

        def once(*arguments: Any) -> None:
            if not next(left, False):
                raise KeyboardInterrupt
            move(*arguments)

        monkeypatch.setattr(kind, "set_registered_model_alias", once)

    cut_off_after(1)
    with pytest.raises(KeyboardInterrupt):
        promote(name, two, "always")
    assert aliases(registry(), name) == {"champion": one, "previous": one}
    with pytest.raises(InputError, match=f"champion and previous of '{name}' are both version {one}"):
        rollback(name)
    monkeypatch.undo()
    assert promote(name, two, "always").promoted
    assert aliases(registry(), name) == {"champion": two, "previous": one}
    cut_off_after(1)
    with pytest.raises(KeyboardInterrupt):
        rollback(name)
    assert aliases(registry(), name)["champion"] == one  # what was wanted is served


def test_promote__a_champion_that_changes_meanwhile_is_compared_again(
    put: Put, signs: Examples, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, poor, good, middle = name_of(request), put(3.0), put(0.0), put(1.0)
    promote(name, poor)
    compare = promotion.compare_map

    def slowly(*sides: Any) -> Any:
        monkeypatch.undo()
        promote(name, good, "always")  # another search ends
        return compare(*sides)

    monkeypatch.setattr(promotion, "compare_map", slowly)
    judged = promote(name, middle, examples=signs)
    assert (judged.promoted, judged.champion) == (False, good)
    assert aliases(registry(), name)["champion"] == good


def test_promote__no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no MLflow store in"):
        rollback("any")
    assert list(tmp_path.iterdir()) == []
