import json

import numpy as np
import pytest

from data.errors import InputError
from serve.parts import Part, open_parts, parts_folder

KEY = {
    "images": 4,
    "image_order": "o",
    "classes": ["cat", "dog"],
    "model_version": "1",
    "model_hash": "abc",
    "preprocessing": "p",
}
GOOD = Part(0, (1.5, -2.25), (0.75, 0.125))
BAD = Part(reason='bad image: empty, "so"')


def stored(store):
    rows, numbers = store.rows(0, 4)
    return dict(zip(rows.tolist(), numbers.tolist(), strict=True)), dict(store.reasons())


def test_open_parts__what_was_added_is_there_again(tmp_path):
    out = tmp_path / "deep" / "scores.parquet"

    def interrupted() -> None:
        with open_parts(out, KEY, 4) as store:
            store.add(2, GOOD)
            store.flush()
            store.add(0, BAD)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_parts(out, KEY, 4) as store:
        assert stored(store) == ({2: [[1.5, -2.25], [0.75, 0.125]]}, {0: BAD.reason})
        assert (store.resumed, store.failed, store.added, store.done) == (2, 1, 0, 2)
        assert store.missing().tolist() == [1, 3]
        store.add(1, Part(1, (0.0, 0.0), (0.5, 0.5)))
        store.add(3, Part(reason="another"))
    with open_parts(out, KEY, 4) as store:
        assert stored(store) == (
            {1: [[0.0, 0.0], [0.5, 0.5]], 2: [[1.5, -2.25], [0.75, 0.125]]},
            {0: BAD.reason, 3: "another"},
        )
        assert (store.scored_by(0), store.scored_by(1), store.failed) == (1, 1, 2)
        store.remove()
    assert list(out.parent.iterdir()) == []


def test_part_store__what_was_not_flushed_is_to_be_done_again(tmp_path):
    """After a kill -9 the rows may be there, but no state says so; half a reason is in nobody's way."""
    out = tmp_path / "scores.parquet"
    with open_parts(out, KEY, 4) as store:
        store.add(0, GOOD)
        store.flush()
        state = (parts_folder(out) / "state.bin").read_bytes()
        store.add(1, GOOD)
        store.add(2, BAD)
    (parts_folder(out) / "state.bin").write_bytes(state)
    with (parts_folder(out) / "failures.jsonl").open("ab") as stream:
        stream.write(b'"half a rea')
    with open_parts(out, KEY, 4) as store:
        assert store.missing().tolist() == [1, 2, 3]
        store.add(1, BAD)
        assert dict(store.reasons()) == {1: BAD.reason}


def test_part_store__an_image_has_one_outcome(tmp_path):
    with open_parts(tmp_path / "s.parquet", KEY, 4) as store:
        store.add(1, GOOD)
        with pytest.raises(RuntimeError, match="image 1 has a second outcome"):
            store.add(1, BAD)


@pytest.mark.parametrize("logit", [(1.0,), (), (1.0, np.nan), (np.inf, 0.0)])
def test_part_store__numbers_that_are_no_answer(tmp_path, logit):
    with open_parts(tmp_path / "s.parquet", KEY, 4) as store:
        with pytest.raises(RuntimeError, match="2 finite logits and scores"):
            store.add(1, Part(0, logit, (0.5, 0.5)))
        assert store.missing().tolist() == [0, 1, 2, 3]


def test_open_parts__another_model_or_other_images_need_restart(tmp_path):
    out = tmp_path / "scores.parquet"
    with open_parts(out, KEY, 4) as store:
        store.add(0, GOOD)
    other = KEY | {"model_hash": "xyz"}
    with (
        pytest.raises(
            InputError,
            match="model hash was abc, is now xyz; --restart forgets them, --allow-model-change goes on",
        ),
        open_parts(out, other, 4),
    ):
        pass
    with open_parts(out, other, 4, allow_model_change=True) as store:
        assert store.resumed == 1
    with (
        pytest.raises(InputError, match="image order was o, is now q; --restart forgets them, or choose"),
        open_parts(out, KEY | {"image_order": "q"}, 4, allow_model_change=True),
    ):
        pass
    with open_parts(out, other, 4, restart=True) as store:
        assert store.done == 0


def test_open_parts__damage_and_other_formats_are_named(tmp_path):
    out = tmp_path / "scores.parquet"
    with open_parts(out, KEY, 4):
        pass
    (parts_folder(out) / "rows.bin").write_bytes(b"short")
    with (
        pytest.raises(InputError, match=r"rows\.bin is damaged: 5 bytes where 64 belong; --restart"),
        open_parts(out, KEY, 4),
    ):
        pass
    run = parts_folder(out) / "run.json"
    run.write_text(json.dumps({"format": 99, "key": KEY}))
    with (
        pytest.raises(InputError, match="has format 99, this version writes 2; --restart"),
        open_parts(out, KEY, 4),
    ):
        pass
    run.unlink()
    (parts_folder(out) / "000000.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="parts of an older version"), open_parts(out, KEY, 4):
        pass


def test_open_parts__one_writer_at_a_time(tmp_path):
    out = tmp_path / "scores.parquet"
    with (
        open_parts(out, KEY, 4),
        pytest.raises(InputError, match="another client is writing"),
        open_parts(out, KEY, 4),
    ):
        pass
