"""A small real model and real images for the tests of serve/.

The model: the mean of each channel (and of the left half), times a fixed matrix, so that outputs vary with
the image. `kind` changes what can go wrong inside it:
    plain    nothing
    gather   an index out of range where the first pixel's red is above 250: the run raises
    log      the logit is minus infinity for a black image
    slow     a few hundred ms of matrix products for each batch
"""

import asyncio
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from data.image import fingerprint
from data.model_file import ModelInfo
from train.golden import add_golden

SIZE = 32
CLASSES = ("cat", "dog", "person")
# As a cheaper model's file says it; what it says goes through the server and the client as it is.
GATE = {"precision": "int8", "map": 0.5}
_ROOT = Path(__file__).resolve().parents[2]


def _info() -> ModelInfo:
    count = len(CLASSES)
    return ModelInfo(
        name="mean pool 32 px",
        classes=CLASSES,
        size=SIZE,
        preprocessing=fingerprint(SIZE),
        scale=(1.0,) * count,
        bias=(0.0,) * count,
        thresholds=(0.5, 0.4, 0.6),
        precision="int8",
        gate=GATE,
    )


def _build(path: Path, kind: str, seed: int, metadata: dict[str, str], batch: int | str, dtype: int) -> Path:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 2, (6, len(CLASSES))).astype(np.float32)
    constants = {
        "starts": np.array([0], np.int64),
        "half": np.array([SIZE // 2], np.int64),
        "width_axis": np.array([3], np.int64),
        "levels": np.array(255, np.float32),
        "middle": np.array(0.5, np.float32),
        "weights": weights,
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "levels"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Slice", ["planes", "starts", "half", "width_axis"], ["left"]),
        # Not ReduceMean: that one sums in another order for a batch of 1 (3e-6 off).
        helper.make_node("GlobalAveragePool", ["planes"], ["mean"]),
        helper.make_node("GlobalAveragePool", ["left"], ["left_mean"]),
        helper.make_node("Concat", ["mean", "left_mean"], ["stacked"], axis=1),
        helper.make_node("Flatten", ["stacked"], ["pooled"]),
    ]
    if kind == "log":
        nodes.append(helper.make_node("Log", ["pooled"], ["features"]))
        constants["weights"] = np.abs(weights)
    else:
        nodes.append(helper.make_node("Sub", ["pooled", "middle"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", "weights"], ["plain"]))
    last = "plain"
    if kind == "gather":
        constants["table"] = np.zeros((251, 1), np.float32)
        constants["corner"] = np.array([0, 0, 0], np.int64)
        constants["corner_end"] = np.array([1, 1, 1], np.int64)
        constants["corner_axes"] = np.array([1, 2, 3], np.int64)
        constants["flat"] = np.array([-1], np.int64)
        nodes += [
            helper.make_node("Slice", ["float", "corner", "corner_end", "corner_axes"], ["first"]),
            helper.make_node("Reshape", ["first", "flat"], ["first_flat"]),
            helper.make_node("Cast", ["first_flat"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["nought"], axis=0),
            helper.make_node("Add", [last, "nought"], ["gathered"]),
        ]
        last = "gathered"
    if kind == "slow":
        side = 1000
        constants["big"] = rng.normal(0, 0.01, (side, side)).astype(np.float32)
        constants["nil"] = np.array(0, np.float32)
        # Tied to the input, or the products would be folded away when the model is loaded.
        nodes.append(helper.make_node("ReduceMax", ["unit"], ["top"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["big", "top"], ["product0"]))
        for step in range(4):
            nodes.append(helper.make_node("MatMul", [f"product{step}", "big"], [f"product{step + 1}"]))
        nodes += [
            helper.make_node("ReduceMean", ["product4"], ["average"], keepdims=0),
            helper.make_node("Mul", ["average", "nil"], ["nothing"]),
            helper.make_node("Add", [last, "nothing"], ["slowed"]),
        ]
        last = "slowed"
    nodes.append(helper.make_node("Identity", [last], ["logit"]))
    nodes.append(helper.make_node("Sigmoid", ["logit"], ["score"]))
    shape = [batch, SIZE, SIZE, 3]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(CLASSES)])
            for name in ("logit", "score")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    if "tailacc.golden_logit" in metadata and dtype == TensorProto.UINT8 and batch == "N":
        add_golden(path)
    return path


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model file of a kind; `metadata` replaces all of it, other names replace fields of ModelInfo."""

    def make(
        kind: str = "plain",
        seed: int = 0,
        metadata: dict[str, str] | None = None,
        batch: int | str = "N",
        dtype: int = TensorProto.UINT8,
        **changes: object,
    ) -> Path:
        path = tmp_path_factory.mktemp("model") / f"{kind}.onnx"
        props = replace(_info(), **changes).to_metadata() if metadata is None else metadata
        return _build(path, kind, seed, props, batch, dtype)

    return make


@pytest.fixture(scope="session")
def model_file(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """A JPEG of random blocks, so that each seed gives another image; `colour` gives a plain one."""

    def make(seed: int, side: int = 48, colour: tuple[int, int, int] | None = None) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 240, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        if colour is not None:
            image = Image.new("RGB", (side, side), colour)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90)
        return stream.getvalue()

    return make


@pytest.fixture
def image_folder(tmp_path: Path, encode: Callable[..., bytes]) -> Callable[[int], Path]:
    """A folder of n images img_0000.jpg ..."""

    def make(count: int) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(count):
            (folder / f"img_{number:04d}.jpg").write_bytes(encode(number))
        return folder

    return make


class Process:
    """A server in a process of its own; `address` once it is ready."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(_ROOT / "serve" / "server.py"),
                "--threads",
                "1",
                "--device",
                "cpu",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = self.process.stdout.readline()
        self.ready_line = line.rstrip("\n")
        self.address = self.ready_line.removeprefix("ready ")

    def _read(self) -> None:
        self._errors.extend(self.process.stderr)

    def finish(self, number: int | None = None) -> tuple[int, str, str]:
        """Send a signal, wait; returns exit code, the rest of stdout, stderr."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code, self.process.stdout.read(), "".join(self._errors)


@pytest.fixture
def start_server(model_file: Path) -> Iterator[Callable[..., Process]]:
    """Start server processes; what still runs at the end of the test is killed."""
    started: list[Process] = []

    def start(*options: str, model: Path = model_file, listen: str = "127.0.0.1:0") -> Process:
        process = Process("--model", str(model), "--listen", listen, *options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait()
        process.process.stdout.close()
        process.process.stderr.close()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run_async() -> Callable[..., object]:
    """Run a coroutine to its end in a fresh event loop, with a limit so that a wedge is a failure."""

    def run(coroutine: object, limit: float = 60.0) -> object:
        async def limited() -> object:
            async with asyncio.timeout(limit):
                return await coroutine

        return asyncio.run(limited())

    return run


class Authority:
    """Makes PEM files in `folder`: ca.pem of its own, and certificates for 127.0.0.1 with their keys."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self._folder, self._curve = folder, ec.SECP256R1()
        self._key = ec.generate_private_key(self._curve)
        self._certificate = self._sign(name, self._key, ca=True)
        self.ca = self._write(f"{name}.pem", self._pem(self._certificate))

    def issue(
        self, name: str, begins: int = -1, ends: int = 1, address: str = "127.0.0.1"
    ) -> tuple[str, str]:
        """The paths of a certificate and its key; valid from `begins` to `ends`, in days from now."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(self._curve)
        certificate = self._sign(name, key, begins=begins, ends=ends, address=address)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.pem", self._pem(certificate)), self._write(f"{name}.key", secret)

    def _sign(
        self, name: str, key: Any, ca: bool = False, begins: int = -9, ends: int = 9, address: str = ""
    ) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(subject_name=subject, public_key=key.public_key())
            .issuer_name(subject if ca else self._certificate.subject)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begins))
            .not_valid_after(now + timedelta(days=ends))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if address:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    @staticmethod
    def _pem(certificate: Any) -> bytes:
        from cryptography.hazmat.primitives import serialization

        return certificate.public_bytes(serialization.Encoding.PEM)

    def _write(self, name: str, content: bytes) -> str:
        """By a rename, and for its owner alone."""
        path, new = self._folder / name, self._folder / f"{name}.new"
        new.write_bytes(content)
        new.chmod(0o600)
        new.replace(path)
        return str(path)


@pytest.fixture
def make_authority(tmp_path: Path) -> Callable[..., Authority]:
    """Authorities by name, whose files are in the test's folder."""
    pytest.importorskip("cryptography", reason="certificates are made with the package cryptography")
    return lambda name="authority": Authority(tmp_path, name)


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[..., str]:
    """Write a file that its owner alone may read; returns its path."""

    def write(text: str, name: str = "tokens", mode: int = 0o600) -> str:
        new = tmp_path / f"{name}.new"
        new.write_text(text)
        new.chmod(mode)
        new.replace(tmp_path / name)
        return str(tmp_path / name)

    return write
