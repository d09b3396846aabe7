"""The tail explorer: one self-contained HTML file in which a person moves t and sees what it costs.

Two questions, for each class:

- *Trust above t.* Tailacc(t), the share of right answers among the images that score strictly above t, with
  coverage, counts, and the images just above and just below t. t runs from the classification threshold
  (logit 0) to the highest logit.
- *A person checks a band.* Images above t2 are taken as "yes", images at or below t1 as "no", and a person
  looks at those between (t1 < f <= t2), whose answers are then right. The accuracy over all images that
  count, the number of images to look at, and how many of the positives are found.

The counts are made in the page from the same float32 logits and by the same strict inequality as
`eval.metrics.tail_curve`, ignored pairs removed. The file loads nothing: a content security policy forbids it.
"""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt

from eval.gallery import thumbnail
from eval.joining import Joined
from eval.metrics import CLASSIFICATION_THRESHOLD
from eval.ranking import id_ranks

_TEMPLATES = Path(__file__).parent / "templates"
# 3 kB a thumbnail: about 8 MB of page at the most. Beyond it, the best scored images of each class have one.
MOST_THUMBNAILS = 2000
_THUMBNAIL_SIDE = 112
# 5 bytes a pair: beyond it, the page is too heavy for a browser (20,000 images of 80 classes: 11 MB as text).
MOST_PAIRS = 2_000_000
_IGNORED = 2


def write_explorer(path: Path, joined: Joined, title: str, threads: int = 2) -> str:
    """Write the explorer to `path`, and return "" or why it was not written.

    Args:
        path: the .html file.
        joined: scores and labels; without photographs at hand the page has numbers only.
        title: of the page, such as the model's name.
        threads: that make thumbnails.
    """
    images, classes = joined.logit.shape
    if images * classes > MOST_PAIRS:
        return f"{images:,} images of {classes} classes are more than a page can hold ({MOST_PAIRS:,} pairs)"
    # In ascending order of ids: a row's place is then its rank among equal scores.
    order = np.argsort(id_ranks(joined.image_ids, images))
    truth = np.where(joined.mask == 0, _IGNORED, joined.target).astype(np.uint8)[order]
    data = {
        "title": title,
        "labels": joined.name,
        "threshold": CLASSIFICATION_THRESHOLD,
        "classes": joined.classes,
        "ids": [joined.image_ids[row] for row in order],
        # By class, so that the page reads one class's images as one stretch.
        "logit": _text(np.ascontiguousarray(joined.logit[order].T.astype("<f4"))),
        "score": _text(np.ascontiguousarray(joined.score[order].T.astype("<f4"))),
        "truth": _text(np.ascontiguousarray(truth.T)),
        "thumbnails": _thumbnails(joined, order, threads),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("explorer.html.j2").render(
        title=title,
        labels=joined.name,
        classes=joined.classes,
        style=(_TEMPLATES / "explorer.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "explorer.js").read_text(encoding="utf-8"),
        # "<" escaped: no class name or image id can end the element that holds the data.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    path.write_text(page, encoding="utf-8")
    return ""


def with_thumbnail(logit: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.int64]:
    """The rows of float32[N, C] that get a picture: all, or the best of each class in turn until there are `most`."""
    if len(logit) <= most:
        return np.arange(len(logit))
    best = np.argsort(-logit, axis=0, kind="stable")  # place 0 of every class, then place 1 ...
    rows, first = np.unique(best.ravel(), return_index=True)
    chosen: npt.NDArray[np.int64] = np.sort(rows[np.argsort(first)][:most])
    return chosen


def _thumbnails(joined: Joined, order: npt.NDArray[np.int64], threads: int) -> dict[int, str]:
    """Base64 JPEGs by row of the page, for the images that get one."""
    if not joined.paths:
        return {}
    rows = with_thumbnail(joined.logit[order], MOST_THUMBNAILS).tolist()

    def encode(row: int) -> str:
        stream = io.BytesIO()
        picture = thumbnail(joined.paths[order[row]], _THUMBNAIL_SIDE)
        picture.save(stream, "JPEG", quality=62, optimize=True)
        return base64.b64encode(stream.getvalue()).decode()

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(rows, pool.map(encode, rows), strict=True))


def _text(array: npt.NDArray[np.generic]) -> str:
    return base64.b64encode(array.tobytes()).decode()
