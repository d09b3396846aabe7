"""What becomes of one image: a row of scores, or the reason why there is none."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Row:
    """The answer of the model for one image: `logit` float32[C] and `score` float32[C], all finite."""

    logit: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]


class Trouble(Enum):
    """Why an image has no row; the same names as `ImageStatus.Code` in scoring.proto, but for NO_MEMORY, which the
    engine makes the answer to the whole request."""

    BAD_IMAGE = "bad image"
    TOO_LARGE = "too large"
    INFERENCE_FAILED = "inference failed"
    NO_MEMORY = "no memory"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no row, with one line for a person."""

    trouble: Trouble
    message: str


Outcome = Row | Failure
