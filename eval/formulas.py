"""The losses of `train.losses.LOSSES` as the paper shows them: formula, settings and source.

Kept here because eval/ does not import torch; a test compares the names with the registry. Notation: p is the
score sigmoid(f(x)) of a pair, y its label, m its mask (0 = ignored).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Formula:
    """One loss.

    Attributes:
        title: its name in words.
        math: the loss of one pair, in Typst's math.
        settings: (symbol in Typst's math, key of the flat configuration) of each setting in the formula.
        source: where it was published.
    """

    title: str
    math: str
    settings: tuple[tuple[str, str], ...]
    source: str


FORMULAS: dict[str, Formula] = {
    "bce": Formula(
        "binary cross-entropy",
        "ell = - y log p - (1 - y) log(1 - p)",
        (),
        "the negative log-likelihood of independent Bernoulli labels; strictly proper",
    ),
    "pos_weighted": Formula(
        "binary cross-entropy with weighted positives",
        'ell = - w_c y log p - (1 - y) log(1 - p), quad w_c = min(max("negatives"_c / "positives"_c, 1), w_max)',
        (("w_max", "loss.max_pos_weight"),),
        "class weights from the training part; the scores need calibration before they are read as probabilities",
    ),
    "focal": Formula(
        "focal loss",
        "ell = - y (1 - p)^gamma log p - (1 - y) p^gamma log(1 - p)",
        (("gamma", "loss.gamma"),),
        "Lin, Goyal, Girshick, He and Dollár, Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002",
    ),
    "asl": Formula(
        "asymmetric loss",
        "ell = - y (1 - p)^(gamma_+) log p - (1 - y) q^(gamma_-) log(1 - q), quad q = max(p - mu, 0)",
        (("gamma_+", "loss.gamma_pos"), ("gamma_-", "loss.gamma_neg"), ("mu", "loss.margin")),
        "Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021, arXiv:2009.14119",
    ),
}
REDUCTION = "cal(L) = sum m ell \\/ sum m"
"""The loss of a batch, in Typst's math: the mean over the pairs that are not ignored."""
