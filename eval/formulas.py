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
    "class_balanced": Formula(
        "class-balanced binary cross-entropy",
        "ell = w_c (- y log p - (1 - y) log(1 - p)), quad w_c prop 1 \\/ (1 - e^(-s_c \\/ v))",
        (("v", "loss.effective_share"),),
        "effective number of samples in shares (s: share of positives): Cui et al., Class-Balanced Loss Based on "
        "Effective Number of Samples, CVPR 2019, arXiv:1901.05555; strictly proper",
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
    "apl": Formula(
        "asymmetric polynomial loss",
        "ell = y (1 - p)^(gamma_+) (- log p + a (1 - p) + b / 2 (1 - p)^2) - (1 - y) q^(gamma_-) log(1 - q), "
        "quad q = max(p - mu, 0)",
        (
            ("a", "loss.apl_first"),
            ("b", "loss.apl_second"),
            ("gamma_+", "loss.gamma_pos"),
            ("gamma_-", "loss.gamma_neg"),
            ("mu", "loss.margin"),
        ),
        "Huang et al., Asymmetric Polynomial Loss For Multi-Label Classification, ICASSP 2023, arXiv:2304.05361",
    ),
    "hill": Formula(
        "Hill loss",
        "ell = - y (1 - r)^gamma log r + (1 - y) (lambda - p) p^2, quad r = sigma(f(x) - mu)",
        (("lambda", "loss.hill_lambda"), ("mu", "loss.hill_margin"), ("gamma", "loss.gamma")),
        "Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing Labels, arXiv:2112.07368",
    ),
    "proper": Formula(
        "strictly proper asymmetric loss",
        "ell = y (1 - p^a) / a + (1 - y) integral_0^p c^a / (1 - c) dif c",
        (("a", "loss.asymmetry"),),
        "the beta family of Buja, Stuetzle and Shen, Loss Functions for Binary Class Probability Estimation and "
        "Classification, 2005, with weight c^(a-1) (1-c)^(-1)",
    ),
    "tail": Formula(
        "cross-entropy balanced over coverage",
        "ell = w (- y log p - (1 - y) log(1 - p)), quad w prop max(S_c, epsilon)^(-gamma)",
        (("gamma", "loss.tail_power"), ("epsilon", "loss.tail_floor"), ("Q", "loss.queue")),
        "ours, strictly proper; S: the share of the images of the batch and of the Q before it that score higher in "
        "the class, without gradient",
    ),
    "two_way": Formula(
        "two-way multi-label loss",
        'ell = "softplus"(log sum_(y = 0) e^(f(x)) + T log sum_(y = 1) e^(-f(x) \\/ T))',
        (("T", "loss.positive_temperature"),),
        "over the classes of each image and over the images of each class: Kobayashi, Two-way Multi-Label Loss, "
        "CVPR 2023",
    ),
    "lsep": Formula(
        "log-sum-exp pairwise loss",
        "ell = log(1 + sum_(y_u = 1) sum_(y_v = 0) e^(f_v (x) - f_u (x)))",
        (),
        "of an image; ranks its classes: Li, Song and Luo, Improving Pairwise Ranking for Multi-label Image "
        "Classification, CVPR 2017, arXiv:1704.03135",
    ),
    "zlpr": Formula(
        "zero-bounded log-sum-exp and pairwise rank loss",
        "ell = log(1 + sum_(y_c = 1) e^(-f_c (x))) + log(1 + sum_(y_c = 0) e^(f_c (x)))",
        (),
        "of an image; ranks its classes: Su et al., ZLPR: A Novel Loss for Multi-label Classification, "
        "arXiv:2208.02955",
    ),
    "smooth_ap": Formula(
        "smooth average precision",
        'ell_c = 1 - "mean"_(y_i = 1) (1 + sum_(y_j = 1) sigma_(i j)) / (1 + sum_j sigma_(i j)) + lambda "BCE"_c, '
        "quad sigma_(i j) = sigma((f(x_j) - f(x_i)) \\/ tau)",
        (("tau", "loss.temperature"), ("lambda", "loss.anchor"), ("Q", "loss.queue")),
        "of a class, over the batch and the Q images before it: Brown et al., Smooth-AP, ECCV 2020, arXiv:2007.12163",
    ),
    "top_precision": Formula(
        "precision above soft thresholds",
        'ell_c = 1 - "mean"_t (sum_i y_i sigma((f(x_i) - t) \\/ tau)) / (sum_i sigma((f(x_i) - t) \\/ tau)) '
        '+ lambda "BCE"_c',
        (("tau", "loss.temperature"), ("lambda", "loss.anchor"), ("Q", "loss.queue")),
        "of a class, over the batch and the Q images before it; eight thresholds among its highest scores",
    ),
}
REDUCTION = "cal(L) = sum m ell \\/ sum m"
"""The loss of a batch, in Typst's math: the mean over what is not ignored (pairs, images or classes)."""
