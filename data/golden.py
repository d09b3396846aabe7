"""The golden image: a fixed synthetic picture whose logits stand in the model file.

The export scores it once and writes the logits; a server scores it before it says that it is ready. What
differs by more than the tolerance in the file is a broken file, a broken runtime or a broken device.
"""

import numpy as np
import numpy.typing as npt


def golden_image(size: int, seed: int) -> npt.NDArray[np.uint8]:
    """uint8[size, size, 3]: ramps, stripes and blocks that reach every level; integer arithmetic alone.

    Not from numpy's generators, whose streams may change with the version.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.int64)
    block = 1 + size // 7
    noise = ((x // block) * 73_856_093 ^ (y // block) * 19_349_663 ^ (seed + 1) * 83_492_791) % 97
    planes = (x * 255 // size + noise, y * 255 // size + 2 * noise, (x * y + 13 * noise + seed) % 256)
    return np.ascontiguousarray(np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8))
