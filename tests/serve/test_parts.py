import pytest

from data.errors import InputError
from serve.parts import Part, open_parts, parts_folder

MANIFEST = {"model_hash": "abc", "data_fingerprint": "def"}
GOOD = Part("a", (1.5, -2.25), (0.75, 0.125))
BAD = Part("b", reason="bad image: empty")


def test_open_parts__what_was_added_is_there_again(tmp_path):
    out = tmp_path / "deep" / "scores.parquet"

    def interrupted() -> None:
        with open_parts(out, MANIFEST, restart=False) as store:
            store.add(GOOD)
            store.flush()
            store.add(BAD)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_parts(out, MANIFEST, restart=False) as store:
        assert store.done == {"a": GOOD, "b": BAD}
        assert (store.resumed, store.failed) == (2, 1)
        store.add(Part("c", (0.0, 0.0), (0.5, 0.5)))
    with open_parts(out, MANIFEST, restart=False) as store:
        assert set(store.done) == {"a", "b", "c"}
        store.remove()
    assert list(out.parent.iterdir()) == []


def test_open_parts__another_model_or_other_images_need_restart(tmp_path):
    out = tmp_path / "scores.parquet"
    with open_parts(out, MANIFEST, restart=False) as store:
        store.add(GOOD)
    with (
        pytest.raises(InputError, match="model hash was abc, is now xyz; --restart forgets them"),
        open_parts(out, MANIFEST | {"model_hash": "xyz"}, restart=False),
    ):
        pass
    with open_parts(out, MANIFEST | {"model_hash": "xyz"}, restart=True) as store:
        assert store.done == {}


def test_open_parts__a_file_cut_off_by_a_kill_does_not_count(tmp_path):
    out = tmp_path / "scores.parquet"
    with open_parts(out, MANIFEST, restart=False) as store:
        store.add(GOOD)
    (parts_folder(out) / "000001.partial").write_bytes(b"PAR1 half a file")
    with open_parts(out, MANIFEST, restart=False) as store:
        assert store.done == {"a": GOOD}
        store.add(BAD)
    with open_parts(out, MANIFEST, restart=False) as store:
        assert set(store.done) == {"a", "b"}


def test_open_parts__one_writer_at_a_time(tmp_path):
    out = tmp_path / "scores.parquet"
    with (
        open_parts(out, MANIFEST, restart=False),
        pytest.raises(InputError, match="another client is writing"),
        open_parts(out, MANIFEST, restart=False),
    ):
        pass
