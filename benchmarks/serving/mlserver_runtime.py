"""The rival: a runtime for Seldon MLServer 1.7.1 that does the same work, in MLServer's own environment.

The same libraries and the same calls as data/image.py for a plain JPEG (strict libjpeg-turbo, Pillow's antialiased
bilinear resize), the same session options as our server, decoding in a pool of one thread a core, and the event
loop free while both run. Batches come from MLServer's adaptive batching; benchmarks/serve.py writes its settings.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import simplejpeg
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from PIL import Image

CORES = len(os.sched_getaffinity(0))


class OnnxImages(MLModel):
    """BYTES [N] of JPEG files -> FP32 logit and score [N, C]."""

    async def load(self) -> bool:
        """Open the session and warm it at every batch size."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(os.environ["BENCHMARK_THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.environ["BENCHMARK_MODEL"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._size = self._session.get_inputs()[0].shape[1]
        self._decoders = ThreadPoolExecutor(CORES)
        self._runner = ThreadPoolExecutor(int(os.environ["BENCHMARK_RUNNERS"]))
        for count in range(1, self.settings.max_batch_size + 1):
            self._run([np.zeros((self._size, self._size, 3), np.uint8)] * count)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Decode in the pool, score in another thread."""
        loop = asyncio.get_running_loop()
        photos = list(payload.inputs[0].data)
        jobs = [loop.run_in_executor(self._decoders, self._decode, photo) for photo in photos]
        pixels = await asyncio.gather(*jobs)
        logit, score = await loop.run_in_executor(self._runner, self._run, pixels)
        outputs = [
            ResponseOutput(
                name=name, shape=list(value.shape), datatype="FP32", data=value.reshape(-1).tolist()
            )
            for name, value in (("logit", logit), ("score", score))
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _decode(self, photo: bytes | str) -> np.ndarray:
        data = photo.encode("latin-1") if isinstance(photo, str) else photo
        picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
        return np.array(picture.resize((self._size, self._size), Image.Resampling.BILINEAR))

    def _run(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        return self._session.run(["logit", "score"], {"image": np.stack(pixels)})
