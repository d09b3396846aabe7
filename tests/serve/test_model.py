from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from data.errors import InputError
from data.model_file import ModelInfo
from serve import device
from serve.model import OnnxModel, buckets_up_to
from serve.registry import ModelSource


def _load(path, name="cpu", max_batch=1) -> OnnxModel:
    return OnnxModel(ModelSource(path), name, 1, max_batch)


def test_onnx_model__run_gives_logit_and_score(model_file):
    model = _load(model_file, max_batch=4)
    model.warm()
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    logit, score = model.run(images)
    assert logit.shape == score.shape == (5, 3)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-logit)), atol=1e-6)


def test_onnx_model__another_preprocessing_is_refused(make_model):
    path = make_model(preprocessing="0123456789abcdef")
    with pytest.raises(InputError, match="trained with preprocessing 0123456789abcdef, this server has"):
        _load(path)


def test_onnx_model__missing_metadata_is_named(make_model, model_file):
    with pytest.raises(InputError, match="is not a model file of format 1"):
        _load(make_model(metadata={}))
    stored = {entry.key: entry.value for entry in onnx.load(model_file).metadata_props}
    del stored["tailacc.thresholds"]
    with pytest.raises(InputError, match=r"metadata 'tailacc\.thresholds' is missing"):
        _load(make_model(metadata=stored))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": TensorProto.FLOAT}, r"must be 'image' uint8\[N, 32, 32, 3\], got 'image' tensor\(float\)"),
        ({"batch": 4}, "its batch dimension must be dynamic, got 4"),
    ],
)
def test_onnx_model__another_signature_is_refused(make_model, changes, words):
    with pytest.raises(InputError, match=words):
        _load(make_model(**changes))


def test_onnx_model__a_missing_output_is_named(model_file, tmp_path):
    model = onnx.load(model_file)
    del model.graph.output[1]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="output 'score' is missing; it has: logit"):
        _load(tmp_path / "model.onnx")


def test_warm__more_classes_in_the_metadata_than_in_the_outputs(model_file, tmp_path):
    stored = {entry.key: entry.value for entry in onnx.load(model_file).metadata_props}
    info = ModelInfo.from_metadata(stored, "model")
    four = replace(
        info,
        classes=(*info.classes, "cow"),
        scale=(1.0,) * 4,
        bias=(0.0,) * 4,
        thresholds=(0.5,) * 4,
        golden_logit=(0.0,) * 4,
    )
    stored = onnx.load(model_file)
    onnx.helper.set_model_props(stored, four.to_metadata())
    onnx.save(stored, tmp_path / "model.onnx")
    model = _load(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"'logit' must be float32\[1, 4\].*got float32\[1, 3\]"):
        model.warm()


def _with(model_file, path, **changes):
    """The same file with other metadata."""
    model = onnx.load(model_file)
    info = ModelInfo.from_metadata({entry.key: entry.value for entry in model.metadata_props}, "model")
    onnx.helper.set_model_props(model, replace(info, **changes).to_metadata())
    onnx.save(model, path)
    return path


def test_onnx_model__a_file_without_golden_image_is_refused(model_file, tmp_path):
    with pytest.raises(InputError, match="has no golden image to be checked with; export it again"):
        _load(_with(model_file, tmp_path / "model.onnx", golden_logit=()))


def test_warm__a_golden_image_with_other_logits_is_refused(model_file, tmp_path):
    golden = ModelInfo.from_metadata(
        {entry.key: entry.value for entry in onnx.load(model_file).metadata_props}, "model"
    ).golden_logit
    near = (golden[0] + 5e-4, *golden[1:])
    _load(_with(model_file, tmp_path / "near.onnx", golden_logit=near)).warm()
    far = (*golden[:2], golden[2] - 2e-3)
    with pytest.raises(InputError, match=r"golden image's logits differ by 2\.00e-03 from those in the file"):
        _load(_with(model_file, tmp_path / "far.onnx", golden_logit=far)).warm()


@pytest.mark.parametrize(
    ("max_batch", "wanted"), [(1, (1,)), (2, (1, 2)), (7, (1, 2, 4, 7)), (16, (1, 2, 4, 8, 16))]
)
def test_buckets_up_to__powers_of_two_and_the_largest(max_batch, wanted):
    assert buckets_up_to(max_batch) == wanted


def test_warm__measures_and_keeps_the_default_buckets(model_file):
    model = _load(model_file, max_batch=0)
    model.warm()
    assert model.buckets == (1, 2, 4)
    assert model.seconds_an_image > 0


def test_run__bit_for_bit_the_same_from_any_thread_and_on_all_cores(model_file):
    model = OnnxModel(ModelSource(model_file), "cpu", 3, 4)
    model.warm()
    assert model.runners == 3
    images = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    alone = np.concatenate([model.run(model.fill(1, [image]), alone=True)[0] for image in images])
    with ThreadPoolExecutor(3) as pool:
        parts = [images[at : at + 4] for at in range(0, 24, 4)] * 10
        together = list(pool.map(lambda part: model.run(model.fill(4, list(part)))[0], parts))
    for turn in range(10):
        np.testing.assert_array_equal(np.concatenate(together[6 * turn : 6 * turn + 6]), alone)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_run__scores_depend_neither_on_bucket_nor_on_mates(model_file, padding):
    model = _load(model_file, max_batch=8)
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    alone = np.concatenate([model.run(model.fill(1, [image]))[1] for image in images])
    others = list(np.random.default_rng(2).integers(0, 256, (padding, 32, 32, 3), dtype=np.uint8))
    together = model.run(model.fill(8, [*others, *images]))[1][padding : padding + 5]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_bound_batch__gives_what_a_plain_run_gives(model_file):
    """The path of the GPU, on the CPU: what stands in the host buffer at the time of the run is scored."""
    model = _load(model_file, max_batch=4)
    buffer = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    bound = device.BoundBatch(model._session, "cpu", buffer)
    for seed in range(3):
        buffer[:] = np.random.default_rng(seed).integers(0, 256, buffer.shape, dtype=np.uint8)
        for ours, plain in zip(bound.run(), model.run(buffer.copy()), strict=True):
            np.testing.assert_array_equal(ours, plain)


def test_onnx_model__each_batch_size_of_a_gpu_has_its_own_session(model_file, monkeypatch):
    """The path of the GPU, on the CPU. One session for all planned each convolution anew at each change of size."""
    opened, bound = [], []

    def open_here(path, wanted, threads):
        opened.append(wanted)
        return device.open_session(path, "cpu", threads)[0], device.Device("cuda", "as if")

    class Bound(device.BoundBatch):
        def __init__(self, session, name, images):
            bound.append((session, name, len(images)))
            super().__init__(session, "cpu", images)

    monkeypatch.setattr("serve.model.open_session", open_here)
    monkeypatch.setattr("serve.model.BoundBatch", Bound)
    model = _load(model_file, "auto", max_batch=4)
    model.warm()
    # What fails to start beside the first must not run on the CPU without a word.
    assert opened == ["auto", "cuda", "cuda"]
    assert [(name, size) for _, name, size in bound] == [("cuda", 1), ("cuda", 2), ("cuda", 4)]
    assert len({id(session) for session, _, _ in bound}) == 3
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    plain = _load(model_file).run(images)[0]
    for count in (1, 2, 4, 3, 1):
        size = next(size for size in model.buckets if size >= count)
        logit = model.run(model.fill(size, list(images[:count])))[0][:count]
        np.testing.assert_allclose(logit, plain[:count], atol=1e-6)


def test_reopen__a_file_that_was_replaced_is_refused(make_model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(make_model().read_bytes())
    model = _load(path, max_batch=2)
    assert model.reopen().buckets == (1, 2)
    path.write_bytes(make_model(seed=5).read_bytes())
    with pytest.raises(InputError, match="is another file now"):
        model.reopen()


def test_onnx_model__a_text_file_is_not_a_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("hello")
    with pytest.raises(InputError, match="is not a model that ONNX Runtime can load"):
        _load(path)


def test_open_session__cuda_that_does_not_work_is_an_error_and_auto_says_why(model_file, monkeypatch):
    """ONNX Runtime lists CUDA here and falls back to the CPU in silence: that is what must not happen."""
    with pytest.raises(InputError, match=r"--device cuda does not work here: .+; use --device cpu, or auto"):
        _load(model_file, "cuda")
    found = _load(model_file, "auto").device
    assert (found.name, found.reason.startswith("no CUDA: ")) == ("cpu", True)
    # A driver that is there, and a provider that still cannot start.
    monkeypatch.setattr(device, "_cuda_problem", lambda: "")
    with pytest.raises(InputError, match="could not start its CUDA provider"):
        _load(model_file, "cuda")


def test_model__damaged_text_in_the_file_is_one_line_and_nothing_on_stdout(make_model, tmp_path, capfd):
    """ONNX Runtime would print a page on stdout, where the server says that it is ready, and try again."""
    whole = make_model().read_bytes()
    for number, damage in enumerate((b"\xe8\xff", b"[\n")):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(whole.replace(b'["', damage, 1))
        with pytest.raises(InputError) as info:
            OnnxModel(ModelSource(path), "cpu", 1)
        assert str(path) in str(info.value)
        assert "\n" not in str(info.value)
    assert capfd.readouterr().out == ""
