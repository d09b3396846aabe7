"""The unmodified tritonclient against a running server, call by call. Prints a table; exit code 1 where a row failed.

    PYTHON-WITH-TRITONCLIENT tests/serve/tritonclient_conformance.py --server HOST:PORT --model NAME --data FOLDER

It runs in tritonclient's own environment (that one's protobuf is older than ours), so it imports nothing of ours.
test_inference_conformance.py starts the server, writes the folder and runs it (`make conformance`). FOLDER holds
    0.jpg ... 7.jpg, bad.jpg   8 images, and bytes that are none
    pixels.npy                 uint8[8, S, S, 3], the images as the server decodes them
    logit.npy, score.npy       float32[8, C], from ONNX Runtime without a server
    inference.desc             the server's FileDescriptorProto
"""

import argparse
import asyncio
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

IMAGES = 8
MANY = 64
WAIT_S = 60.0


class Failed(Exception):
    """A row of the table did not hold."""


def check(condition: bool, message: object) -> None:
    """Raise `Failed` unless `condition`."""
    if not condition:
        raise Failed(str(message))


class Relay:
    """A relay of bytes to the server: counts them each way, and holds back the answers while `held`."""

    def __init__(self, server: str) -> None:
        host, port = server.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = self.down = 0
        self.open = threading.Event()
        self.open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(self._target)
            for source, sink, up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._copy, args=(source, sink, up), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(65536):
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                    self.open.wait()
                sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()


class Conformance:
    """The rows of the table, each a method: it returns what was seen, or raises."""

    def __init__(self, server: str, model: str, data: Path) -> None:
        self.server, self.model, self.data = server, model, data
        self.client = triton.InferenceServerClient(server)
        self.jpegs = [(data / f"{number}.jpg").read_bytes() for number in range(IMAGES)]
        self.bad = (data / "bad.jpg").read_bytes()
        self.pixels = np.load(data / "pixels.npy")
        self.expected = {name: np.load(data / f"{name}.npy") for name in ("logit", "score")}
        self.classes = self.expected["logit"].shape[1]

    def rows(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """The name of each row, with its method."""
        yield "messages, fields, numbers", self.schema
        yield "is_server_live / _ready", self.live
        yield "is_model_ready", self.model_ready
        yield "get_server_metadata", self.server_metadata
        yield "get_model_metadata", self.model_metadata
        yield "get_model_config", self.model_config
        yield "get_model_repository_index", self.index
        yield "infer, BYTES [8]", self.infer_bytes
        yield "infer, BYTES [8, 1]", self.infer_bytes_column
        yield "infer, UINT8 [8, S, S, 3]", self.infer_pixels
        yield "infer, outputs by name and order", self.outputs
        yield "infer, id, version, priority, timeout", self.parameters
        yield "infer, one bad image of 3", self.bad_image
        yield "infer, the same with status", self.bad_image_status
        yield "get_inference_statistics", self.statistics
        yield "async_infer, 16 in flight", self.async_infer
        yield "async_infer, cancelled", self.cancel
        yield "infer, client_timeout", self.client_timeout
        yield "infer, timeout parameter", self.timeout_parameter
        yield "stream, an error in the middle", self.stream
        yield "stream, cancelled", self.stream_cancel
        yield "infer, gzip both ways", self.gzip
        yield "infer, deflate", self.deflate
        yield "aio: infer and stream_infer", self.aio
        yield "refused: unknown names", self.unknown
        yield "refused: wrong tensors", self.wrong
        yield "refused: class_count", self.classification
        yield "refused: sequences", self.sequences
        yield "refused: shared memory", self.shared_memory
        yield "refused: load, unload, settings", self.control
        yield "after all of it", self.infer_bytes

    # One method a row.

    def schema(self) -> str:
        ours = descriptor_pb2.FileDescriptorProto.FromString((self.data / "inference.desc").read_bytes())
        theirs: dict[str, Any] = {}
        methods: dict[str, Any] = {}
        for module in (service_pb2, model_config_pb2):
            file = descriptor_pb2.FileDescriptorProto()
            module.DESCRIPTOR.CopyToProto(file)
            theirs |= dict(_walk(file.message_type, file.enum_type))
            methods |= {method.name: method for service in file.service for method in service.method}
        fields = 0
        for path, (kind, found) in _walk(ours.message_type, ours.enum_type):
            check(path in theirs, f"{path} is not a published name")
            published = theirs[path][1]
            for name, item in found.items():
                check(published.get(name) == item, f"{path}.{name}: {item}, published {published.get(name)}")
                fields += 1
            if not path.startswith("Model") or path.startswith(
                ("ModelInfer", "ModelStream", "ModelStatistics")
            ):
                missing = set(published) - set(found)
                check(kind == "enum" or not missing, f"{path} lacks {missing}")
        for service in ours.service:
            check(service.name == "GRPCInferenceService", service.name)
            for method in service.method:
                check(methods[method.name] == method, f"{method.name} is another call")
        check(ours.package == "inference", ours.package)
        return f"{fields} fields and values and {len(ours.service[0].method)} calls, all as published"

    def live(self) -> str:
        check(self.client.is_server_live() is True, "not live")
        check(self.client.is_server_ready() is True, "not ready")
        return "true / true"

    def model_ready(self) -> str:
        version = self._version()
        answers = [
            self.client.is_model_ready(self.model),
            self.client.is_model_ready(self.model, version),
            self.client.is_model_ready(self.model, "999"),
            self.client.is_model_ready("nothing"),
        ]
        check(answers == [True, True, False, False], answers)
        return f"{self.model}: true, version {version}: true, version 999: false, nothing: false"

    def server_metadata(self) -> str:
        found = self.client.get_server_metadata()
        check(bool(found.name and found.version), found)
        for extension in ("model_configuration", "statistics", "model_repository"):
            check(extension in found.extensions, found.extensions)
        return f"{found.name} {found.version}: {', '.join(found.extensions)}"

    def model_metadata(self) -> str:
        found = self.client.get_model_metadata(self.model)
        side = self.pixels.shape[1]
        inputs = {item.name: (item.datatype, list(item.shape)) for item in found.inputs}
        outputs = {item.name: (item.datatype, list(item.shape)) for item in found.outputs}
        check(inputs == {"image": ("UINT8", [-1, side, side, 3]), "jpeg": ("BYTES", [-1])}, inputs)
        check(
            outputs
            == {
                "logit": ("FP32", [-1, self.classes]),
                "score": ("FP32", [-1, self.classes]),
                "status": ("BYTES", [-1]),
                "message": ("BYTES", [-1]),
            },
            outputs,
        )
        as_json = self.client.get_model_metadata(self.model, as_json=True)
        check(as_json["name"] == self.model, as_json)
        return f"in {', '.join(inputs)}; out {', '.join(outputs)}"

    def model_config(self) -> str:
        config = self.client.get_model_config(self.model).config
        check(config.name == self.model and config.backend == "onnxruntime", config)
        check(config.max_batch_size >= IMAGES, config.max_batch_size)
        check([item.name for item in config.input] == ["image", "jpeg"], config.input)
        check(len(config.parameters["model_hash"].string_value) == 64, config.parameters)
        sizes = list(config.dynamic_batching.preferred_batch_size)
        check(bool(sizes) and sizes == sorted(sizes), sizes)
        return f"max_batch_size {config.max_batch_size}, preferred {sizes}, {config.platform}"

    def index(self) -> str:
        models = self.client.get_model_repository_index().models
        check((self.model, "READY") in [(item.name, item.state) for item in models], models)
        return ", ".join(f"{item.name} {item.version} {item.state}" for item in models)

    def infer_bytes(self) -> str:
        return self._equal(self._infer(self._encoded(self.jpegs)))

    def infer_bytes_column(self) -> str:
        return self._equal(self._infer(self._encoded(self.jpegs, (IMAGES, 1))))

    def infer_pixels(self) -> str:
        return self._equal(self._infer(self._image(self.pixels)))

    def outputs(self) -> str:
        result = self._infer(self._encoded(self.jpegs), outputs=["score", "logit"])
        names = [output.name for output in result.get_response().outputs]
        check(names == ["score", "logit"], names)
        self._equal(result)
        only = self._infer(self._encoded(self.jpegs), outputs=["score"])
        check([output.name for output in only.get_response().outputs] == ["score"], only.get_response())
        check(only.as_numpy("logit") is None, "an output that was not asked for")
        check(len(only.get_response().raw_output_contents) == 1, "more raw outputs than outputs")
        return "score, logit; score alone"

    def parameters(self) -> str:
        result = self._infer(
            self._encoded(self.jpegs[:1]),
            model_version=self._version(),
            request_id="caller 7",
            priority=2**33,
            timeout=30_000_000,
            parameters={"custom": "text", "other": 1},
        ).get_response()
        check(result.id == "caller 7", result.id)
        check(result.model_name == self.model and result.model_version == self._version(), result)
        digest = result.parameters["model_hash"].string_param
        check(len(digest) == 64, digest)
        return f"id given back, version {result.model_version}, model_hash {digest[:12]}..."

    def bad_image(self) -> str:
        return self._fails(
            lambda: self._infer(self._encoded([self.jpegs[0], self.bad, self.jpegs[1]])),
            "INVALID_ARGUMENT",
            "image 1 (counted from 0): BAD_IMAGE",
            "1 of 3 images failed",
        )

    def bad_image_status(self) -> str:
        images = [self.jpegs[0], self.bad, self.jpegs[1]]
        result = self._infer(self._encoded(images), outputs=["logit", "score", "status", "message"])
        status = [text.decode() for text in result.as_numpy("status")]
        check(status == ["OK", "BAD_IMAGE", "OK"], status)
        logit = result.as_numpy("logit")
        check(bool(np.isnan(logit[1]).all()), logit)
        np.testing.assert_allclose(logit[[0, 2]], self.expected["logit"][:2], rtol=0, atol=1e-6)
        return f"{', '.join(status)}; message: {result.as_numpy('message')[1].decode()}"

    def statistics(self) -> str:
        before = self.client.get_inference_statistics(self.model).model_stats[0]
        self._infer(self._encoded(self.jpegs))
        after = self.client.get_inference_statistics(self.model).model_stats[0]
        images = after.inference_count - before.inference_count
        requests = after.inference_stats.success.count - before.inference_stats.success.count
        batches = after.execution_count - before.execution_count
        check((images, requests) == (IMAGES, 1), (images, requests))
        check(1 <= batches <= IMAGES, batches)
        check(sum(item.compute_infer.count for item in after.batch_stats) == after.execution_count, after)
        check(after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns, after)
        check(after.last_inference > 0, after)
        everything = self.client.get_inference_statistics().model_stats
        check(self.model in [item.name for item in everything], everything)
        return f"+{images} images, +{requests} request, +{batches} execution(s)"

    def async_infer(self) -> str:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        for number in range(16):
            self.client.async_infer(
                self.model,
                [self._encoded([self.jpegs[number % IMAGES]])],
                lambda result, error: answers.put((result, error)),
                request_id=str(number),
            )
        seen = set()
        for _ in range(16):
            result, error = answers.get(timeout=WAIT_S)
            check(error is None, error)
            number = int(result.get_response().id)
            expected = self.expected["logit"][[number % IMAGES]]
            np.testing.assert_allclose(result.as_numpy("logit"), expected, rtol=0, atol=1e-6)
            seen.add(number)
        check(seen == set(range(16)), seen)
        return "16 of 16 answered, each with its own scores"

    def cancel(self) -> str:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with self._held() as client:
            call = client.async_infer(
                self.model,
                [self._encoded(self.jpegs)],
                lambda result, error: answers.put((result, error)),
            )
            call.cancel()
            _, error = answers.get(timeout=WAIT_S)
        check(error.status() == "StatusCode.CANCELLED", error)
        return self._said(error)

    def client_timeout(self) -> str:
        with self._held() as client:
            return self._fails(
                lambda: client.infer(self.model, [self._encoded(self.jpegs)], client_timeout=0.3),
                "DEADLINE_EXCEEDED",
            )

    def timeout_parameter(self) -> str:
        return self._fails(
            lambda: self._infer(self._encoded(self.jpegs), timeout=1), "DEADLINE_EXCEEDED", "deadline"
        )

    def stream(self) -> str:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client = triton.InferenceServerClient(self.server)
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(12):
            images = [self.bad] if number == 5 else [self.jpegs[number % IMAGES]]
            client.async_stream_infer(
                self.model,
                [self._encoded(images)],
                request_id=str(number),
                enable_empty_final_response=True,
            )
        for number in range(12):
            result, error = answers.get(timeout=WAIT_S)
            if number == 5:
                check(error is not None and "BAD_IMAGE" in error.message(), error)
                middle = error.message()
                continue
            check(error is None, error)
            response = result.get_response()
            check(response.id == str(number), f"{response.id} in place of {number}")
            check(response.parameters["triton_final_response"].bool_param, response.parameters)
            expected = self.expected["logit"][[number % IMAGES]]
            np.testing.assert_allclose(result.as_numpy("logit"), expected, rtol=0, atol=1e-6)
        client.async_stream_infer("nothing", [self._encoded(self.jpegs[:1])])
        _, error = answers.get(timeout=WAIT_S)
        check(error is not None and "unknown model 'nothing'" in error.message(), error)
        client.async_stream_infer(self.model, [self._image(self.pixels)])
        result, error = answers.get(timeout=WAIT_S)
        check(error is None, error)
        self._equal(result)
        client.stop_stream()
        return f"13 answers in order around 2 errors ({middle[:40]}...)"

    def stream_cancel(self) -> str:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with self._held() as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for _ in range(8):
                client.async_stream_infer(self.model, [self._encoded(self.jpegs)])
            client.stop_stream(cancel_requests=True)
            _, error = answers.get(timeout=WAIT_S)
        check(error is not None and error.status() == "StatusCode.CANCELLED", error)
        return self._said(error)

    def gzip(self) -> str:
        plain, packed = self._traffic(None), self._traffic("gzip")
        check(packed[0] < plain[0] / 4, f"sent {plain[0]} bytes plain, {packed[0]} with gzip")
        # The server was started with --compress-answers. These equal rows would not fit into this plain.
        scores = 2 * 4 * MANY * self.classes
        check(packed[1] < scores, f"received {packed[1]} bytes, of which {scores} would be scores")
        return f"sent {plain[0]} -> {packed[0]} bytes; received {packed[1]} for {scores} bytes of scores"

    def deflate(self) -> str:
        plain, packed = self._traffic(None), self._traffic("deflate")
        check(packed[0] < plain[0] / 4, f"sent {plain[0]} bytes plain, {packed[0]} with deflate")
        return f"sent {plain[0]} -> {packed[0]} bytes"

    def aio(self) -> str:
        async def scenario() -> int:
            async with triton_aio.InferenceServerClient(self.server) as client:
                inputs = [self._encoded(self.jpegs)]
                for result in await asyncio.gather(*(client.infer(self.model, inputs) for _ in range(4))):
                    self._equal(result)

                async def requests() -> Any:
                    for _ in range(6):
                        yield {"model_name": self.model, "inputs": inputs}

                answered = 0
                async for result, error in client.stream_infer(requests()):
                    check(error is None, error)
                    self._equal(result)
                    answered += 1
                return answered

        answered = asyncio.run(asyncio.wait_for(scenario(), WAIT_S))
        check(answered == 6, answered)
        return "4 calls at once, 6 answers on a stream"

    def unknown(self) -> str:
        image = self._encoded(self.jpegs[:1])
        self._fails(lambda: self.client.infer("nothing", [image]), "NOT_FOUND", "'nothing'", self.model)
        self._fails(lambda: self._infer(image, model_version="999"), "NOT_FOUND", "999", self._version())
        self._fails(lambda: self.client.get_model_metadata("nothing"), "NOT_FOUND", self.model)
        self._fails(lambda: self.client.get_model_config("nothing"), "NOT_FOUND", self.model)
        self._fails(lambda: self.client.get_inference_statistics("nothing"), "NOT_FOUND", self.model)
        return self._fails(
            lambda: self._infer(image, outputs=["label"]), "INVALID_ARGUMENT", "'label'", "logit, score"
        )

    def wrong(self) -> str:
        side = self.pixels.shape[1]
        self._fails(
            lambda: self._infer(self._image(self.pixels[:, :-1])), "INVALID_ARGUMENT", f"[8, {side - 1}, "
        )
        self._fails(
            lambda: self._infer(self._image(self.pixels.astype(np.float32), "FP32")),
            "INVALID_ARGUMENT",
            "must have datatype UINT8, got 'FP32'",
        )
        return self._fails(
            lambda: self.client.infer(self.model, [self._image(self.pixels), self._encoded(self.jpegs)]),
            "INVALID_ARGUMENT",
            "gives one input",
        )

    def classification(self) -> str:
        wanted = [triton.InferRequestedOutput("score", class_count=3)]
        return self._fails(
            lambda: self.client.infer(self.model, [self._encoded(self.jpegs)], outputs=wanted),
            "INVALID_ARGUMENT",
            "'classification'",
        )

    def sequences(self) -> str:
        return self._fails(
            lambda: self._infer(self._encoded(self.jpegs), sequence_id=5, sequence_start=True),
            "INVALID_ARGUMENT",
            "'sequence_",
        )

    def shared_memory(self) -> str:
        tensor = triton.InferInput("image", self.pixels.shape, "UINT8")
        tensor.set_shared_memory("pool", self.pixels.nbytes)
        self._fails(lambda: self._infer(tensor), "INVALID_ARGUMENT", "shared memory is not supported")
        self._fails(self.client.get_cuda_shared_memory_status, "UNIMPLEMENTED", "CudaSharedMemoryStatus")
        return self._fails(
            lambda: self.client.register_system_shared_memory("pool", "/pool", 64),
            "UNIMPLEMENTED",
            "SystemSharedMemoryRegister: shared memory is not supported",
        )

    def control(self) -> str:
        self._fails(lambda: self.client.unload_model(self.model), "UNIMPLEMENTED", "RepositoryModelUnload")
        self._fails(self.client.get_trace_settings, "UNIMPLEMENTED", "TraceSetting")
        self._fails(self.client.get_log_settings, "UNIMPLEMENTED", "LogSettings")
        return self._fails(lambda: self.client.load_model(self.model), "UNIMPLEMENTED", "RepositoryModelLoad")

    # What the rows share.

    def _version(self) -> str:
        return str(self.client.get_model_metadata(self.model).versions[0])

    def _encoded(self, images: list[bytes], shape: tuple[int, ...] | None = None) -> Any:
        tensor = triton.InferInput("jpeg", shape or (len(images),), "BYTES")
        return tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(tensor.shape()))

    def _image(self, pixels: Any, datatype: str = "UINT8") -> Any:
        tensor = triton.InferInput("image", pixels.shape, datatype)
        return tensor.set_data_from_numpy(np.ascontiguousarray(pixels))

    def _infer(self, tensor: Any, outputs: list[str] | None = None, **options: Any) -> Any:
        wanted = None if outputs is None else [triton.InferRequestedOutput(name) for name in outputs]
        return self.client.infer(self.model, [tensor], outputs=wanted, client_timeout=WAIT_S, **options)

    def _equal(self, result: Any) -> str:
        furthest = 0.0
        for name, expected in self.expected.items():
            values = result.as_numpy(name)
            check(values.shape == expected.shape and values.dtype == np.float32, (values.shape, values.dtype))
            check(bool(np.isfinite(values).all()), f"{name} is not finite")
            furthest = max(furthest, float(np.abs(values - expected).max()))
        check(furthest <= 1e-6, f"{furthest} from the scores without a server")
        return f"{list(values.shape)}; largest difference from offline {furthest:.1e}"

    def _fails(self, call: Callable[[], Any], status: str, *words: str) -> str:
        try:
            call()
        except InferenceServerException as error:
            check(error.status() == f"StatusCode.{status}", f"{error.status()}: {error.message()}")
            for word in words:
                check(word in error.message(), f"'{word}' is not in: {error.message()}")
            return self._said(error)
        raise Failed(f"was not refused with {status}")

    def _said(self, error: InferenceServerException) -> str:
        return f"{error.status().removeprefix('StatusCode.')}: {error.message()}"

    @contextmanager
    def _held(self) -> Iterator[Any]:
        """A client whose answers are held back on the way, so that its calls are surely in flight."""
        relay = Relay(self.server)
        client = triton.InferenceServerClient(relay.address)
        check(client.is_server_live(), "not live through the relay")
        relay.open.clear()
        try:
            yield client
        finally:
            relay.open.set()
            client.close()

    def _traffic(self, compression: str | None) -> tuple[int, int]:
        """Bytes sent and received for one request of many equal, even images."""
        relay = Relay(self.server)
        client = triton.InferenceServerClient(relay.address)
        check(client.is_server_live(), "not live through the relay")
        up, down = relay.up, relay.down
        pixels = np.full((MANY, *self.pixels.shape[1:]), 100, np.uint8)
        result = client.infer(self.model, [self._image(pixels)], compression_algorithm=compression)
        check(result.as_numpy("score").shape == (MANY, self.classes), result.as_numpy("score").shape)
        counts = relay.up - up, relay.down - down
        client.close()
        return counts


def _walk(messages: Any, enums: Any, prefix: str = "") -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """(path, (kind, name -> what it is)) of each message and enum."""
    for enum in enums:
        yield prefix + enum.name, ("enum", {value.name: value.number for value in enum.value})
    for message in messages:
        path = prefix + message.name
        fields = {}
        for field in message.field:
            choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            fields[field.name] = (field.number, field.type, field.label, field.type_name, choice)
        yield path, ("message", fields)
        yield from _walk(message.nested_type, message.enum_type, path + ".")


def main() -> int:
    """Run every row; returns the exit code."""
    parser = argparse.ArgumentParser(description="tritonclient against a running server, call by call.")
    parser.add_argument("--server", required=True, help="HOST:PORT")
    parser.add_argument("--model", default="tailacc")
    parser.add_argument("--data", type=Path, required=True, help="the folder that the docstring describes")
    options = parser.parse_args()
    suite = Conformance(options.server, options.model, options.data)
    failed = 0
    print("| call | result | what came back |\n|---|---|---|")
    for name, row in suite.rows():
        try:
            result, text = "ok", row()
        except Exception as error:
            result, text = "FAILED", f"{type(error).__name__}: {error}"
            failed += 1
        print(f"| {name} | {result} | {' '.join(text.split()).replace('|', '/')} |", flush=True)
    print(f"\n{failed} failed" if failed else "\nall as published")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
