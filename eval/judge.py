"""Everything that a report says of one score file, as numbers: computed once, shown by table, page and JSON.

Shapes: N images, C classes, T = 20 points of a Tailacc curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.calibration import Reliability, reliability
from eval.confusion import Confusion, most_confused
from eval.diagnosis import Figure, figures
from eval.intervals import Bootstrap, bootstrap, interval
from eval.joining import Joined
from eval.metrics import (
    F1,
    KINDS,
    Kind,
    TailCurve,
    accuracy,
    always_no_accuracy,
    f1,
    mean_average_precision,
    micro_average_precision,
    precision_at,
    precision_at_coverage,
    ranked_average_precision,
    tail_area,
    tailacc,
    tailacc_absolute,
    ties,
)
from eval.ranking import Floats, Logits, Ranking, rankings

COVERAGES = (0.10, 0.25, 0.50)
RELATIVE, ABSOLUTE = "relative", "absolute"
# Below this many positives, an AP moves by several points with a single image.
FEW_POSITIVES = 10


@dataclass(frozen=True, slots=True)
class Curve:
    """A mean Tailacc curve with its 95 % band, float64[T] each; NaN where no class has a tail."""

    tail: TailCurve
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Means:
    """The figures over a set of classes.

    Attributes:
        classes: the names in the set.
        map, interval: for each kind, the mAP and its 95 % interval.
        num_classes: how many of the classes have a positive, and so an AP.
        accuracy, always_no: means over the classes.
        curves: the mean Tailacc curves by name.
        f1: CF1 and OF1 at a score of 0.5.
        f1_fitted: the same at the model's own threshold of each class, None where they are not known.
        precision_at_50: the mean over the classes that have a positive.
        precision_at_coverage: for each share of the images, the same mean.
        ece: the mean expected calibration error over the classes that have an image.
        tail_area, tail_area_interval: the area under the relative mean Tailacc curve, and its 95 % interval.
    """

    classes: tuple[str, ...]
    map: Mapping[Kind, float]
    interval: Mapping[Kind, tuple[float, float]]
    num_classes: int
    accuracy: float
    always_no: float
    curves: Mapping[str, Curve]
    f1: F1
    f1_fitted: F1 | None
    precision_at_50: float
    precision_at_coverage: Mapping[float, float]
    ece: float
    tail_area: float
    tail_area_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """All figures of one score file: per class float64[C], and the means over all and over chosen classes.

    `ap_low` and `ap_high` bound the VOC 2010 AP; `tied` holds, per class, images that share their score, and
    those of them where the order of equal scores can change the AP. `precision_at_coverage` holds float64[C] for
    each share, `reliability` the diagram and `ece` its expected calibration error of each class, and
    `confusions` the pairs most often confused.
    """

    joined: Joined
    ap: Mapping[Kind, Floats]
    ap_low: Floats
    ap_high: Floats
    accuracy: Floats
    always_no: Floats
    precision_at_50: Floats
    precision_at_coverage: Mapping[float, Floats]
    reliability: tuple[Reliability, ...]
    ece: Floats
    confusions: tuple[Confusion, ...]
    positives: tuple[int, ...]
    ignored: tuple[int, ...]
    tied: tuple[tuple[int, int], ...]
    micro_map: float
    overall: Means
    chosen: Means | None
    others: tuple[Figure, ...]
    notes: tuple[str, ...]
    replicates: int
    seed: int

    @property
    def headline(self) -> Means:
        """The means over the chosen classes, or over all where none were chosen."""
        return self.chosen or self.overall


def judge(
    joined: Joined,
    chosen: Sequence[int] = (),
    replicates: int = 1000,
    seed: int = 0,
    thresholds: Floats | None = None,
) -> Judgement:
    """Compute every figure.

    Args:
        joined: scores and labels.
        chosen: the columns of the classes that a second mean is wanted over; empty: none.
        replicates: bootstrap replicates.
        seed: of the bootstrap.
        thresholds: float64[C], the scores above which the model shows a label; None: not known.
    """
    ranked = list(rankings(joined.logit, joined.target, joined.mask, joined.image_ids))
    curves = {RELATIVE: tailacc(ranked), ABSOLUTE: tailacc_absolute(ranked)}
    sampled = bootstrap(ranked, len(joined.image_ids), curves, replicates, seed)
    low, high = interval(sampled.ap["voc2010"])
    ap = {kind: np.array([ranked_average_precision(r, kind) for r in ranked]) for kind in KINDS}
    everything = range(len(ranked))
    diagrams = tuple(
        reliability(joined.score[:, c], joined.target[:, c], joined.mask[:, c]) for c in everything
    )
    ece = np.array([diagram.ece for diagram in diagrams])

    fitted = None if thresholds is None else logit_thresholds(joined.logit, joined.score, thresholds)

    def means(columns: Sequence[int]) -> Means:
        return _means(joined.classes, ranked, ap, ece, curves, sampled, fitted, columns)

    return Judgement(
        joined=joined,
        ap=ap,
        ap_low=low,
        ap_high=high,
        accuracy=accuracy(ranked),
        always_no=always_no_accuracy(ranked),
        precision_at_50=np.array([precision_at(r, 50) for r in ranked]),
        precision_at_coverage={
            share: np.array([precision_at_coverage(r, share) for r in ranked]) for share in COVERAGES
        },
        reliability=diagrams,
        ece=ece,
        confusions=most_confused(joined.classes, joined.logit, joined.target, joined.mask),
        positives=tuple(r.positives for r in ranked),
        ignored=tuple(len(joined.image_ids) - len(r) for r in ranked),
        tied=tuple(ties(r) for r in ranked),
        micro_map=micro_average_precision(joined.logit, joined.target, joined.mask, joined.image_ids),
        overall=means(everything),
        chosen=means(chosen) if chosen else None,
        others=tuple(figures(joined)),
        notes=(*joined.notes, *_rarity(joined.classes, ranked)),
        replicates=replicates,
        seed=seed,
    )


def logit_thresholds(logit: Logits, score: Logits, thresholds: Floats) -> Floats:
    """float64[C]: the logits above which the images are those with a score above the thresholds float64[C]."""
    below = np.where(score <= thresholds.astype(np.float32), logit, -np.inf)
    return np.asarray(below.max(axis=0, initial=-np.inf), np.float64)


def _rarity(classes: Sequence[str], ranked: Sequence[Ranking]) -> list[str]:
    """Notes on classes whose figures say little."""
    none = [name for name, r in zip(classes, ranked, strict=True) if not r.positives]
    few = [
        f"{n} ({r.positives})"
        for n, r in zip(classes, ranked, strict=True)
        if 0 < r.positives < FEW_POSITIVES
    ]
    notes = []
    if none:
        notes.append(
            f"{len(none)} classes have no positive, so no AP: {', '.join(none)}. In Tailacc and accuracy they count, "
            "and every “yes” of theirs is wrong"
        )
    if few:
        notes.append(
            f"{len(few)} classes have fewer than {FEW_POSITIVES} positives, so their AP is mostly chance, and some "
            f"replicates behind the intervals of the mean are without them: {', '.join(few)}"
        )
    return notes


def _means(
    classes: Sequence[str],
    ranked: Sequence[Ranking],
    ap: Mapping[Kind, Floats],
    ece: Floats,
    curves: Mapping[str, TailCurve],
    sampled: Bootstrap,
    fitted: Floats | None,
    columns: Sequence[int],
) -> Means:
    part = [ranked[c] for c in columns]
    index = list(columns)
    drawn: dict[str, Curve] = {}
    for name, whole in curves.items():
        tail = TailCurve(
            whole.position, whole.threshold[index], whole.above[index], whole.hits[index], whole.images[index]
        )
        drawn[name] = Curve(tail, *interval(sampled.mean_tail(name, index)))
    bounds = {kind: interval(sampled.mean_ap(kind, index)) for kind in KINDS}
    relative = drawn[RELATIVE]
    areas = tail_area(sampled.mean_tail(RELATIVE, index), relative.tail.position)
    area_low, area_high = interval(areas)
    return Means(
        classes=tuple(classes[c] for c in columns),
        map={kind: mean_average_precision(ap[kind][index])[0] for kind in KINDS},
        interval={kind: (float(low), float(high)) for kind, (low, high) in bounds.items()},
        num_classes=mean_average_precision(ap["voc2010"][index])[1],
        accuracy=mean_average_precision(accuracy(part))[0],
        always_no=mean_average_precision(always_no_accuracy(part))[0],
        curves=drawn,
        f1=f1(part),
        f1_fitted=None if fitted is None else f1(part, fitted[index]),
        precision_at_50=mean_average_precision([precision_at(r, 50) for r in part])[0],
        precision_at_coverage={
            share: mean_average_precision([precision_at_coverage(r, share) for r in part])[0]
            for share in COVERAGES
        },
        ece=mean_average_precision(ece[index])[0],
        tail_area=float(tail_area(relative.tail.mean, relative.tail.position)),
        tail_area_interval=(float(area_low), float(area_high)),
    )


def to_json(judgement: Judgement, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The content of metrics.json: figures, their intervals, and what they rest on. NaN becomes null."""
    joined = judgement.joined
    content: dict[str, Any] = _means_json(judgement.overall)
    content["ap"] = {
        name: {
            **{kind: judgement.ap[kind][c] for kind in KINDS},
            "interval": [judgement.ap_low[c], judgement.ap_high[c]],
            "positives": judgement.positives[c],
            "ignored": judgement.ignored[c],
            "accuracy": judgement.accuracy[c],
            "always_no": judgement.always_no[c],
            "precision_at_50": judgement.precision_at_50[c],
            "precision_at_coverage": _shares({s: v[c] for s, v in judgement.precision_at_coverage.items()}),
            "ece": judgement.ece[c],
            "tied": judgement.tied[c][0],
            "tied_mixed": judgement.tied[c][1],
        }
        for c, name in enumerate(joined.classes)
    }
    content["micro_map"] = judgement.micro_map
    content["reliability"] = {
        name: {
            "count": diagram.count,
            "mean_score": diagram.mean_score,
            "positive_share": diagram.positive_share,
        }
        for name, diagram in zip(joined.classes, judgement.reliability, strict=True)
    }
    content["confusions"] = [{**asdict(pair), "rate": pair.rate} for pair in judgement.confusions]
    if judgement.chosen:
        content["chosen"] = {"classes": list(judgement.chosen.classes), **_means_json(judgement.chosen)}
    content["bootstrap"] = {"level": 0.95, "replicates": judgement.replicates, "seed": judgement.seed}
    content["counts"] = {
        "labelled": joined.labelled,
        "judged": len(joined.image_ids),
        "failed": len(joined.failed),
        "classes": len(joined.classes),
    }
    content["failed"] = dict(joined.failed)
    content["notes"] = list(judgement.notes)
    content["other_figures"] = [asdict(figure) for figure in judgement.others]
    content["labels"] = {"name": joined.name, "fingerprint": joined.fingerprint}
    content["score_file"] = dict(metadata)
    plain: dict[str, Any] = _plain(content)
    return plain


def _means_json(means: Means) -> dict[str, Any]:
    relative, absolute = means.curves[RELATIVE], means.curves[ABSOLUTE]
    return {
        "map": {**means.map, "num_classes": means.num_classes, "interval": means.interval},
        "accuracy": {"mean": means.accuracy, "always_no": means.always_no},
        "tailacc": {"position": relative.tail.position, **_curve_json(relative)},
        "tailacc_absolute": {"logit": absolute.tail.position, **_curve_json(absolute)},
        "f1": asdict(means.f1),
        "f1_fitted": asdict(means.f1_fitted) if means.f1_fitted else None,
        "precision_at_50": means.precision_at_50,
        "precision_at_coverage": _shares(means.precision_at_coverage),
        "ece": means.ece,
        "tailacc_area": {"value": means.tail_area, "interval": means.tail_area_interval},
    }


def _shares(values: Mapping[float, float]) -> dict[str, float]:
    return {f"{share:.2f}": value for share, value in values.items()}


def _curve_json(curve: Curve) -> dict[str, Any]:
    return {
        "mean": curve.tail.mean,
        "low": curve.low,
        "high": curve.high,
        "num_classes": curve.tail.num_classes,
        "num_images": curve.tail.num_images,
        "coverage": curve.tail.coverage,
    }


def _plain(value: Any) -> Any:
    """Python's own types, NaN as None: what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
