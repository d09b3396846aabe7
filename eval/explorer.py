"""The tail explorer: one self-contained HTML file in which a person moves t and sees what it costs.

Two questions, for each class:

- *Trust above t.* Tailacc(t), the share of right answers among the images that score strictly above t, with
  coverage, counts, and the images just above and just below t. t runs from the classification threshold
  (logit 0) to the highest logit.
- *A person checks a band.* Images with a logit above t2 are taken as "yes", those at or below t1 as "no", and a
  person looks at those between (t1 < logit <= t2), whose answers are then right. With n images that count:
  accuracy = (positives above t2 + images between + negatives at or below t1) / n; looked at = images between,
  and their share of n; precision of the "yes" that nobody checked = positives above t2 / images above t2;
  positives found = positives above t1 / positives.

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
# Characters of pictures in the page: about 4,000 photographs at 2 kB each.
MOST_PICTURES = 8_000_000
_PICTURE_SIDE = 112
_PICTURES_AT_ONCE = 256
# Images shown on each side of t; the keys move t by a hundredth of its range.
STRIP = 6
KEY_STEPS = 100
# 9 bytes a pair, a third more as text: beyond it, the page is too heavy for a browser (24 MB).
MOST_PAIRS = 2_000_000
_IGNORED = 2


def write_explorer(path: Path, joined: Joined, title: str, threads: int = 2) -> str:
    """Write the explorer to `path`, and return "" or why it was not written.

    Args:
        path: the .html file.
        joined: scores and labels; without photographs at hand the page has numbers only.
        title: of the page, such as the model's name.
        threads: that make the pictures. Where there are more than fit, `picture_order` says which come first.
    """
    images, classes = joined.logit.shape
    if images * classes > MOST_PAIRS:
        return f"{images:,} images of {classes} classes are more than a page can hold ({MOST_PAIRS:,} pairs)"
    # In ascending order of ids: a row's place is then its rank among equal scores.
    order = np.argsort(id_ranks(joined.image_ids, images))
    truth = np.where(joined.mask == 0, _IGNORED, joined.target).astype(np.uint8)[order]
    pictures = _pictures(joined, order, threads)
    data = {
        "title": title,
        "labels": joined.name,
        "threshold": CLASSIFICATION_THRESHOLD,
        "strip": STRIP,
        "steps": KEY_STEPS,
        "classes": joined.classes,
        "ids": [joined.image_ids[row] for row in order],
        # By class, so that the page reads one class's images as one stretch.
        "logit": _text(np.ascontiguousarray(joined.logit[order].T.astype("<f4"))),
        "score": _text(np.ascontiguousarray(joined.score[order].T.astype("<f4"))),
        "truth": _text(np.ascontiguousarray(truth.T)),
        "pictures": pictures,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("explorer.html.j2").render(
        title=title,
        labels=joined.name,
        classes=joined.classes,
        images=images,
        pictures=len(pictures),
        style=(_TEMPLATES / "explorer.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "explorer.js").read_text(encoding="utf-8"),
        # "<" escaped: no class name or image id can end the element that holds the data.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    path.write_text(page, encoding="utf-8")
    return ""


def picture_order(
    logit: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8], start: float = CLASSIFICATION_THRESHOLD
) -> npt.NDArray[np.int64]:
    """int64[N]: the rows of float32[N, C] in the order in which they get a picture.

    First those that stand beside t where a person stops: at both ends of each class's range, then at its tenths,
    then at every step of the arrow keys. Then the rest, by their best place in any class.
    """
    # Places of 0 to KEY_STEPS, the coarse ones first.
    steps = sorted(range(KEY_STEPS + 1), key=lambda k: (k % KEY_STEPS > 0, k % (KEY_STEPS // 10) > 0, k))
    best = np.argsort(-logit, axis=0, kind="stable")
    beside: list[list[npt.NDArray[np.int64]]] = []
    for c in range(logit.shape[1]):
        falling = -logit[best[:, c], c].astype(np.float64)
        top = max(float(logit[mask[:, c] != 0, c].max(initial=-np.inf)), start)
        cuts = np.searchsorted(falling, -(start + np.array(steps) / KEY_STEPS * (top - start)), side="left")
        beside.append([best[max(0, cut - STRIP) : cut + STRIP, c] for cut in cuts])
    stops = [rows for at_step in zip(*beside, strict=True) for rows in at_step]
    rows, first = np.unique(np.concatenate([*stops, best.ravel()]), return_index=True)
    return np.asarray(rows[np.argsort(first)], np.int64)


def _pictures(joined: Joined, order: npt.NDArray[np.int64], threads: int) -> dict[int, str]:
    """Base64 WebP by row of the page, for the images that get a picture."""
    if not joined.paths:
        return {}
    rows = picture_order(joined.logit[order], joined.mask[order]).tolist()

    def encode(row: int) -> str:
        stream = io.BytesIO()
        thumbnail(joined.paths[order[row]], _PICTURE_SIDE).save(stream, "WEBP", quality=50)
        return base64.b64encode(stream.getvalue()).decode()

    pictures: dict[int, str] = {}
    size = 0
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), _PICTURES_AT_ONCE):
            part = rows[start : start + _PICTURES_AT_ONCE]
            for row, text in zip(part, pool.map(encode, part), strict=True):
                size += len(text)
                if size > MOST_PICTURES:
                    return pictures
                pictures[row] = text
    return pictures


def _text(array: npt.NDArray[np.generic]) -> str:
    return base64.b64encode(array.tobytes()).decode()
