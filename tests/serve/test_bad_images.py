"""Strange and bad images through both services and the client: each has its own status, in the words of `data.image`,
and its neighbours have the scores that they have alone. What is wrong with a whole call is in test_bad_calls.py."""

import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from data.image import load
from data.scores import read_scores
from proto.inference.v2 import inference_pb2 as oip
from proto.tailacc.v1 import scoring_pb2 as pb
from proto.tailacc.v1 import scoring_pb2_grpc
from serve.config import Connection, ScoreConfig, ServerConfig
from serve.lifecycle import ScoringServer
from serve.model import OnnxModel
from serve.registry import ModelSource
from serve.scoring import score as score_folder

OK, BAD = pb.ImageStatus.CODE_OK, pb.ImageStatus.CODE_BAD_IMAGE


def _file(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _photo(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 240, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST).convert(mode)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return _file(_photo(), "JPEG", quality=95, exif=exif)


def _deep() -> bytes:
    grey = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    return _file(Image.fromarray(grey), "PNG")


def _bomb() -> bytes:
    """A PNG whose header claims 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + data + b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def _jpeg_bomb() -> bytes:
    data = bytearray(_file(_photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


READABLE = {
    "cmyk": lambda: _file(_photo("CMYK"), "JPEG", quality=95),
    "grey": lambda: _file(_photo("L"), "JPEG", quality=95),
    "16-bit": _deep,
    "turned": _turned,
    "palette": lambda: _file(_photo("P"), "PNG"),
    "50-megapixel": lambda: _file(Image.new("L", (8192, 6200), 77), "JPEG"),
}
UNREADABLE = {
    "bomb": (_bomb, "100000 x 100000 pixels is more than the limit of 67,108,864 pixels"),
    "jpeg bomb": (_jpeg_bomb, "65000 x 65000 pixels is more than the limit of 67,108,864 pixels"),
    "0 bytes": (lambda: b"", "it is an empty file (0 bytes); only JPEG and PNG are read"),
    "text": (
        lambda: b"Dear Sir or Madam,\n",
        "it is text, starting with 'Dear Sir or Madam,'; only JPEG and PNG are read",
    ),
    "gif": (lambda: _file(_photo("P"), "GIF"), "it is a GIF file; only JPEG and PNG are read"),
    "cut off": (lambda: _file(_photo(), "JPEG")[:700], "damaged JPEG: "),
    "bytes": (lambda: b"\1\2\3", "it is of an unknown kind, starting with the bytes 01 02 03"),
}


@pytest.fixture
def score(run_async, model_file):
    def call(*contents: bytes):
        async def scenario():
            server = ScoringServer(
                ServerConfig(
                    model=str(model_file), listen="127.0.0.1:0", device="cpu", threads=1, max_batch=4
                )
            )
            await server.bind()
            try:
                await server.start()
                async with grpc.aio.insecure_channel(server.address) as channel:
                    request = pb.ScoreRequest(
                        images=[
                            pb.Image(id=f"{n}.jpg", content=content) for n, content in enumerate(contents)
                        ]
                    )
                    return (await scoring_pb2_grpc.ScoringStub(channel).Score(request)).results
            finally:
                await server.stop(5)

        return run_async(scenario())

    return call


def _offline(model_file, content: bytes) -> np.ndarray:
    model = OnnxModel(ModelSource(model_file), "cpu", 1)
    return model.run(load(content, model.info.size)[None])[0][0]


def test_score__strange_images_are_scored_as_data_image_reads_them(score, model_file):
    contents = [make() for make in READABLE.values()]
    results = score(*contents)
    for name, content, result in zip(READABLE, contents, results, strict=True):
        assert (name, result.status.code, result.status.message) == (name, OK, "")
        np.testing.assert_allclose(
            result.logits, _offline(model_file, content), rtol=0, atol=1e-6, err_msg=name
        )


def test_score__bad_images_say_what_is_wrong_and_leave_their_neighbours_alone(score, model_file):
    good = _file(_photo(), "JPEG", quality=95)
    bad = [make() for make, _ in UNREADABLE.values()]
    results = score(good, *bad, good)
    for (name, (_, words)), result in zip(UNREADABLE.items(), results[1:-1], strict=True):
        assert (name, result.status.code) == (name, BAD)
        assert words in result.status.message, name
        assert "\n" not in result.status.message
        assert not result.logits
        assert not result.scores
    for result in (results[0], results[-1]):
        assert result.status.code == OK
        np.testing.assert_allclose(result.logits, _offline(model_file, good), rtol=0, atol=1e-6)


def _infer(address, contents, outputs=()):
    """Through the Open Inference Protocol."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="jpeg", datatype="BYTES", shape=[len(contents)])
    raw = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    wanted = [oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs]
    request = oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[raw], outputs=wanted)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            oip.ModelInferRequest.SerializeToString,
            oip.ModelInferResponse.FromString,
        )
        return call(request, timeout=30)


def _texts(raw: bytes) -> list[str]:
    out = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        out.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return out


def test_infer__each_bad_image_is_named_or_has_its_status(start_server, model_file):
    address, good = start_server().address, _file(_photo(), "JPEG", quality=95)
    bad = [make() for make, _ in UNREADABLE.values()]
    for (name, (_, words)), content in zip(UNREADABLE.items(), bad, strict=True):
        with pytest.raises(grpc.RpcError) as info:
            _infer(address, [good, content])
        assert (name, info.value.code()) == (name, grpc.StatusCode.INVALID_ARGUMENT)
        assert f"image 1 (counted from 0): BAD_IMAGE: {words}" in info.value.details(), name
    answer = _infer(address, [good, *bad, good], ("status", "message", "logit"))
    status, message, logit = answer.raw_output_contents
    assert _texts(status) == ["OK", *["BAD_IMAGE"] * len(bad), "OK"]
    for text, (_, words) in zip(_texts(message)[1:-1], UNREADABLE.values(), strict=True):
        assert words in text
    rows = np.frombuffer(logit, np.float32).reshape(len(bad) + 2, -1)
    assert np.isnan(rows[1:-1]).all()
    for row in (rows[0], rows[-1]):
        np.testing.assert_allclose(row, _offline(model_file, good), rtol=0, atol=1e-6)


def test_infer__strange_images_are_scored(start_server, model_file):
    contents = [READABLE[name]() for name in ("cmyk", "16-bit", "turned")]
    logit = _infer(start_server().address, contents, ("logit",)).raw_output_contents[0]
    rows = np.frombuffer(logit, np.float32).reshape(len(contents), -1)
    for row, content in zip(rows, contents, strict=True):
        np.testing.assert_allclose(row, _offline(model_file, content), rtol=0, atol=1e-6)


@pytest.mark.parametrize("send", ["file", "pixels"])
def test_client__bad_images_are_listed_with_their_reasons(start_server, run_async, tmp_path, send):
    folder, out = tmp_path / "images", tmp_path / "s.parquet"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(_file(_photo(), "JPEG", quality=95))
    for name, (make, _) in UNREADABLE.items():
        (folder / f"{name}.jpg").write_bytes(make())
    connection = Connection(server=start_server().address)
    run_async(score_folder(ScoreConfig(connection=connection, images=str(folder), out=out, send=send)))
    scores = read_scores(out)
    assert scores.image_ids == ("good",)
    assert set(scores.failed) == set(UNREADABLE)
    for name, (_, words) in UNREADABLE.items():
        assert words in scores.failed[name], name
