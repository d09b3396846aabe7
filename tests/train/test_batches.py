import numpy as np
import pytest
import torch

from data.errors import InputError
from train.batches import Batches
from train.config import AugmentConfig


def make(
    count: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    seed: int = 3,
    change: AugmentConfig | None = None,
) -> Batches:
    pixels = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    target = (np.arange(count)[:, None] == np.arange(count)[None, :]).astype(np.uint8)  # row i marks image i
    index = np.arange(0, count, dtype=np.int64)
    return Batches(
        pixels, index, target, 1 - target, batch_size, seed, change or AugmentConfig(), rank, world
    )


def images(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch.rows.target.argmax(1).tolist() for batch in batches.epoch(epoch, start)]


def test_epoch__every_image_at_most_once_in_a_new_order_each_time() -> None:
    batches = make(23, 5)
    first, second = images(batches, 1), images(batches, 2)
    assert [len(batch) for batch in first] == [5, 5, 5, 5]
    seen = [image for batch in first for image in batch]
    assert len(set(seen)) == 20
    assert first != second
    assert first == images(batches, 1)


@pytest.mark.parametrize("world", [2, 4])
def test_epoch__shares_of_processes_make_the_global_batch(world: int) -> None:
    whole = images(make(26, 8), 1)
    parts = [images(make(26, 8, rank, world), 1) for rank in range(world)]
    joined = [[image for part in parts for image in part[step]] for step in range(len(whole))]
    assert joined == whole


def test_epoch__target_and_mask_belong_to_the_pixels() -> None:
    batches = make(23, 5)
    for batch in batches.epoch(4):
        for row, image in enumerate(batch.rows.target.argmax(1).tolist()):
            assert batch.rows.pixels[row].numpy().tobytes() == batches.pixels[image].tobytes()
            assert batch.rows.mask[row, image] == 0
        assert batch.partners is None


def test_epoch__started_in_the_middle_gives_the_rest_with_the_same_changes() -> None:
    batches = make(40, 8)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, 3))
    assert [batch.step for batch in rest] == [3, 4]
    for one, two in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.rows.pixels, two.rows.pixels)
        assert torch.equal(one.rows.draws.affine, two.rows.draws.affine)
    assert [batches.images(2, 4).tolist()] == images(batches, 2, 4)


def test_epoch__changes_differ_from_step_to_step_and_epoch_to_epoch() -> None:
    batches = make(16, 8)
    (a, b), (c, _) = list(batches.epoch(1)), list(batches.epoch(2))
    assert not torch.equal(a.rows.draws.affine, b.rows.draws.affine)
    assert not torch.equal(a.rows.draws.affine, c.rows.draws.affine)


@pytest.mark.parametrize("world", [2, 4])
def test_epoch__partners_are_the_same_images_on_any_number_of_processes(world: int) -> None:
    change = AugmentConfig(mixup=0.8, mix_probability=1.0)
    (whole,) = make(8, 8, change=change).epoch(1)
    partner = whole.rows.draws.partner
    assert partner is not None
    assert whole.partners is None  # they are among the rows
    found = []
    for rank in range(world):
        for batch in make(8, 8, rank, world, change=change).epoch(1):
            assert batch.partners is not None
            found += batch.partners.target.argmax(1).tolist()
            # Its own changes too: the partner is the image as it would be shown by itself.
            wanted = whole.rows.draws.affine[partner[batch.first : batch.last]]
            assert torch.equal(batch.partners.draws.affine, wanted)
    assert found == whole.rows.target[partner].argmax(1).tolist()
    assert sorted(found) == list(range(8))


def test_epoch__fewer_images_than_a_batch_are_one_batch() -> None:
    assert [len(batch) for batch in images(make(3, 8), 1)] == [3]


def test_epoch__a_loop_that_is_left_early_stops_its_reader() -> None:
    epoch = make(40, 2).epoch(1)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]  # would hang if the reader did not stop


def test_epoch__an_error_of_the_reader_reaches_the_loop() -> None:
    batches = make(8, 2)
    batches.index = np.array([0, 1, 99], dtype=np.int64)
    with pytest.raises(IndexError):
        list(batches.epoch(1))


def test_batches__names_the_rule() -> None:
    with pytest.raises(InputError, match=r"multiple of the number of processes \(3\), got 8"):
        make(20, 8, world=3)
    with pytest.raises(InputError, match="2 training images are fewer than the 4 processes"):
        make(2, 4, world=4)
