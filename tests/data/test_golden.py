import hashlib

import numpy as np
import pytest

from data.golden import golden_image


@pytest.mark.parametrize(
    ("size", "seed", "digest"), [(224, 1, "cd4ef6f7ff324cc5"), (32, 0, "ed96d1e73d75e542")]
)
def test_golden_image__is_the_same_everywhere_and_for_ever(size, seed, digest):
    """Model files that exist hold the logits of these very pixels."""
    image = golden_image(size, seed)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == digest


def test_golden_image__reaches_all_levels_and_differs_by_seed():
    image = golden_image(224, 1)
    assert all(len(np.unique(image[..., channel])) > 250 for channel in range(3))
    assert (image != golden_image(224, 2)).mean() > 0.5
