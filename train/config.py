"""The configuration of one training run: frozen dataclasses and their checks.

Every field can be set on the command line (`--optimizer.lr 3e-4`). Precedence: command line, then
`--config FILE`, then `--preset NAME`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def require(condition: bool, rule: str, value: object) -> None:
    """Raise `InputError` naming the rule and the value where the condition does not hold."""
    if not condition:
        raise InputError(f"{rule}, but got {value}")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which images are trained on.

    Attributes:
        root: folder that holds VOC2012/ (or VOC2007/); None: $VOC_ROOT, or else the synthetic devkit.
        labels: a CSV `image,<class>...` instead of a devkit (1, 0, empty = ignored).
        split: which images of the devkit to train on.
        selection: share of them held out to choose epochs, thresholds and hyper-parameters.
        selection_seed: of that split; apart from `seed`, so that runs with other seeds are chosen on the same
            images and their weights may be averaged.
        size: side of the square input in pixels.
        train_size: side in pixels of the augmented training images; 0 = `size`. Training somewhat below the
            size of use is faster and fits the scale of objects in random crops (Touvron et al. 2019,
            arXiv:1906.06423).
        cache: folder of the decoded images, shared by all runs.
    """

    root: Path | None = None
    labels: Path | None = None
    split: str = "train"
    selection: float = 0.15
    selection_seed: int = 0
    size: int = 224
    train_size: int = 0
    cache: Path = Path("runs/cache")

    def __post_init__(self) -> None:
        require(0 < self.selection < 1, "data.selection must be between 0 and 1 exclusive", self.selection)
        require(self.selection_seed >= 0, "data.selection_seed must not be negative", self.selection_seed)
        require(16 <= self.size <= 1024, "data.size must be between 16 and 1024 pixels", self.size)
        rule = "data.train_size must be 0 or between 16 and 1024 pixels"
        require(self.train_size == 0 or 16 <= self.train_size <= 1024, rule, self.train_size)
        if self.root and self.labels:
            raise InputError("data.root and data.labels are two sources of labels; give one of them")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What is trained.

    Attributes:
        backbone: a name of `train.backbones.BACKBONES`.
        weights: "imagenet" (torchvision's, downloaded), "none", or a path to a state dict.
        head: a name of `train.heads.HEADS`.
        dropout: in the head; before its layer, or inside "ml_decoder".
        drop_path: probability of dropping the last residual block's branch, growing linearly from 0 at the first.
        frozen_blocks: leave the stem and this many of the first blocks as they are; 0 = train all.
        gradient_checkpointing: compute the blocks again in the backward pass, for less memory.
        csra_lambda: weight of the attention in "csra".
        csra_temperature: of each of its heads; inf = the maximum.
        ml_decoder_dim, ml_decoder_queries, ml_decoder_heads, ml_decoder_feed_forward: of "ml_decoder": width,
            largest number of queries, heads of the attention, width inside the feed-forward layer.
        ml_decoder_learned: train its queries too.
    """

    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"
    head: str = "linear"
    dropout: float = 0.1
    drop_path: float = 0.0
    frozen_blocks: int = 0
    gradient_checkpointing: bool = False
    csra_lambda: float = 0.1
    csra_temperature: tuple[float, ...] = (1.0,)
    ml_decoder_dim: int = 768
    ml_decoder_queries: int = 100
    ml_decoder_heads: int = 8
    ml_decoder_feed_forward: int = 2048
    ml_decoder_learned: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "model.dropout must be in [0, 1)", self.dropout)
        require(0 <= self.drop_path < 1, "model.drop_path must be in [0, 1)", self.drop_path)
        require(self.frozen_blocks >= 0, "model.frozen_blocks must not be negative", self.frozen_blocks)
        require(self.csra_lambda >= 0, "model.csra_lambda must not be negative", self.csra_lambda)
        rule = "model.csra_temperature must name at least one positive temperature"
        temperatures = self.csra_temperature
        require(len(temperatures) > 0 and all(t > 0 for t in temperatures), rule, temperatures)
        for name in ("dim", "queries", "heads", "feed_forward"):
            value = getattr(self, f"ml_decoder_{name}")
            require(value >= 1, f"model.ml_decoder_{name} must be at least 1", value)
        rule = f"model.ml_decoder_dim must be a multiple of ml_decoder_heads ({self.ml_decoder_heads})"
        require(self.ml_decoder_dim % self.ml_decoder_heads == 0, rule, self.ml_decoder_dim)


@dataclass(frozen=True, slots=True)
class LossConfig:
    """How wrong an output is. See `train.losses` for each formula and its source.

    Attributes:
        name: a name of `train.losses.LOSSES`.
        label_smoothing: s; every target t becomes t (1 - s) + s / 2, with any loss.
        gamma: focusing power of "focal", and of the positives of "hill".
        gamma_pos, gamma_neg, margin: of "asl" and "apl" (focusing powers, probability margin of negatives).
        max_pos_weight: upper limit of the weight of positives in "pos_weighted".
        effective_share: of "class_balanced": share of the images at which more positives stop to count.
        apl_first, apl_second: of "apl": change of the first two Taylor coefficients of positives.
        hill_lambda, hill_margin: of "hill" (where negatives peak, logit margin of positives).
        asymmetry: of "proper": how much less easy negatives weigh; 0 is BCE.
        positive_temperature: of "two_way".
        queue: images of earlier batches that "tail", "smooth_ap" and "top_precision" remember.
        tail_power, tail_floor: of "tail": how much more the top weighs (0 is BCE), and the share of the images
            from which on it is all top.
        temperature: of "smooth_ap" and "top_precision", in logits: how soft "above" is.
        anchor: of the same two: weight of BCE beside the ranking.
    """

    name: str = "bce"
    label_smoothing: float = 0.0
    gamma: float = 2.0
    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    margin: float = 0.05
    max_pos_weight: float = 20.0
    effective_share: float = 0.2
    apl_first: float = -1.0
    apl_second: float = 2.5
    hill_lambda: float = 1.5
    hill_margin: float = 1.0
    asymmetry: float = 0.5
    positive_temperature: float = 4.0
    queue: int = 512
    tail_power: float = 0.5
    tail_floor: float = 0.02
    temperature: float = 0.5
    anchor: float = 0.3

    def __post_init__(self) -> None:
        for name in ("gamma", "gamma_pos", "gamma_neg", "asymmetry", "queue", "anchor"):
            require(getattr(self, name) >= 0, f"loss.{name} must not be negative", getattr(self, name))
        for name in ("effective_share", "positive_temperature", "temperature"):
            require(getattr(self, name) > 0, f"loss.{name} must be positive", getattr(self, name))
        for name in ("label_smoothing", "margin"):
            require(0 <= getattr(self, name) < 1, f"loss.{name} must be in [0, 1)", getattr(self, name))
        require(self.max_pos_weight >= 1, "loss.max_pos_weight must be at least 1", self.max_pos_weight)
        require(self.hill_lambda >= 1, "loss.hill_lambda must be at least 1", self.hill_lambda)
        require(0 <= self.tail_power <= 2, "loss.tail_power must be in [0, 2]", self.tail_power)
        require(0 < self.tail_floor <= 1, "loss.tail_floor must be in (0, 1]", self.tail_floor)


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with a learning rate each for backbone and head.

    Attributes:
        lr: peak learning rate of the head (weight and bias).
        backbone_lr: peak learning rate of the backbone.
        layer_decay: factor on it for each block further from the head (0.65 to 0.9 for transformers); 1 = none.
        weight_decay: decoupled, on matrices and convolutions only (not on biases, norms and embeddings).
        clip: largest norm of the gradient; 0 = no limit.
    """

    lr: float = 1e-3
    backbone_lr: float = 2e-4
    layer_decay: float = 1.0
    weight_decay: float = 0.02
    clip: float = 5.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr must be positive", self.lr)
        require(self.backbone_lr >= 0, "optimizer.backbone_lr must not be negative", self.backbone_lr)
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay must be in (0, 1]", self.layer_decay)
        require(self.weight_decay >= 0, "optimizer.weight_decay must not be negative", self.weight_decay)
        require(self.clip >= 0, "optimizer.clip must not be negative", self.clip)


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How long, and how the learning rate goes (`train.schedule` has the formulas).

    Attributes:
        epochs: passes over the training part.
        shape: "cosine": linear warm-up, then a cosine to zero; "one_cycle": cosine up, cosine down, and the
            momentum the other way (use a warmup of about 0.3).
        warmup: share of all steps spent warming up.
        keep: the weights that are saved as the best: those of the epoch with the highest selection mAP, or the
            last ones, for a schedule that ends near zero and a selection part too small to tell epochs apart.
        patience: stop after this many epochs without a better selection mAP; 0 = never.
    """

    epochs: int = 6
    shape: Literal["cosine", "one_cycle"] = "cosine"
    warmup: float = 0.1
    keep: Literal["best", "last"] = "best"
    patience: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "schedule.epochs must be at least 1", self.epochs)
        require(0 <= self.warmup < 1, "schedule.warmup must be in [0, 1)", self.warmup)
        require(self.patience >= 0, "schedule.patience must not be negative", self.patience)
        if self.patience and self.keep == "last":
            raise InputError(
                "schedule.patience looks for the best epoch, but schedule.keep is last; give one of them"
            )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Random changes of each training image, made in batches on the device. See `train.augment` for the order.

    Attributes:
        crop: "none": the whole image; "area": Inception's crop of random area and aspect ratio;
            "multiscale": fixed scales at 13 fixed positions.
        min_area: a crop of "area" covers at least this share of the image's area (1 = no crop).
        aspect: its width to height ratio lies in [1/aspect, aspect].
        scales: sides of the crops of "multiscale", as shares of the image's side, from large to small.
        scale_distort: how many steps of `scales` its width and height may lie apart; 0 = squares.
        flip: probability of a left-right flip.
        brightness, contrast, saturation: largest relative change.
        hue: largest change in turns of the colour wheel (0.5 = the opposite colour).
        randaugment_ops: changes by RandAugment an image; 0 = none.
        randaugment_magnitude: their strength from 0 to 10; torchvision's default 9 of 30 is 3 here.
        cutout: side of the blanked square as a share of the image's side; 0 = none.
        cutout_probability: share of the images that are blanked so.
        mixup, cutmix: alpha of the Beta distribution of the mixing share; 0 = none. With both on, each
            mixed image takes one of the two at even odds.
        mix_probability: share of the images that are mixed.
    """

    crop: Literal["none", "area", "multiscale"] = "area"
    min_area: float = 0.35
    aspect: float = 1.33
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66, 0.5)
    scale_distort: int = 0
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.0
    hue: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 3.0
    cutout: float = 0.0
    cutout_probability: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.min_area <= 1, "augment.min_area must be in (0, 1]", self.min_area)
        require(self.aspect >= 1, "augment.aspect must be at least 1", self.aspect)
        scales = self.scales
        require(len(scales) > 0, "augment.scales must name at least one scale", scales)
        require(all(0 < s <= 1 for s in scales), "augment.scales must be in (0, 1]", scales)
        require(self.scale_distort >= 0, "augment.scale_distort must not be negative", self.scale_distort)
        for name in ("brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) < 1, f"augment.{name} must be in [0, 1)", getattr(self, name))
        require(0 <= self.hue <= 0.5, "augment.hue must be in [0, 0.5]", self.hue)
        ops, magnitude = self.randaugment_ops, self.randaugment_magnitude
        require(0 <= ops <= 8, "augment.randaugment_ops must be between 0 and 8", ops)
        require(0 <= magnitude <= 10, "augment.randaugment_magnitude must be between 0 and 10", magnitude)
        for name in ("flip", "cutout", "cutout_probability", "mix_probability"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} must be in [0, 1]", getattr(self, name))
        for name in ("mixup", "cutmix"):
            require(
                0 <= getattr(self, name) <= 100, f"augment.{name} must be in [0, 100]", getattr(self, name)
            )


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Where the run is recorded. The store is MLFLOW_TRACKING_URI, or MLflow's own default.

    Attributes:
        enabled: record the run in MLflow.
        experiment: name of the MLflow experiment.
        run_name: shown in the UI; empty: backbone, loss and learning rate.
        wait: seconds that the end of a run waits for a tracking server that is away; what it has not taken by
            then stays in the run's folder for train/send.py.
    """

    enabled: bool = True
    experiment: str = "tailacc"
    run_name: str = ""
    wait: float = 60.0

    def __post_init__(self) -> None:
        require(self.wait >= 0, "tracking.wait must not be negative", self.wait)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Attributes:
        out: folder that owns everything the run writes; None: runs/train/<time>.
        overwrite: replace the run that is in `out`.
        resume: go on with the run that is in `out`.
        batch_size: images a step over all processes together, so that the number of processes changes
            neither the learning rate nor the result.
        accumulate: parts that each process computes a step in, one after the other, to save memory; the
            gradient is that of the whole batch (but batch-norm statistics, and losses over the batch, see one part).
        ema: decay of the moving average of the weights, which is what is evaluated and saved; 0 = none.
        flip_test: evaluate, and later serve, the mean of the logits of an image and its mirror image: at twice
            the cost.
        precision: of the forward and backward pass; "auto": bfloat16 where the device is fast at it.
        channels_last: memory layout of the convolutions.
        compile: torch.compile the model: minutes to start, then faster on GPUs.
        sync_norms: batch-norm statistics over all processes together, so that their number does not change
            the result.
        checkpoint_minutes: save also within an epoch, this often; 0 = after every epoch only.
        threads: of each process on a CPU; 0 = its share of the cores (`accelerate launch` alone would leave
            it with one).
        seed: of the split, the initial weights, the order and the augmentation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    batch_size: int = 32
    accumulate: int = 1
    ema: float = 0.99
    flip_test: bool = False
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False
    sync_norms: bool = True
    checkpoint_minutes: float = 5.0
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        require(self.accumulate >= 1, "accumulate must be at least 1", self.accumulate)
        rule = "checkpoint_minutes must not be negative"
        require(self.checkpoint_minutes >= 0, rule, self.checkpoint_minutes)
        require(self.threads >= 0, "threads must not be negative", self.threads)
        require(0 <= self.ema < 1, "ema must be in [0, 1)", self.ema)
        require(0 <= self.seed < 2**31, "seed must be between 0 and 2^31 - 1", self.seed)
        if self.overwrite and self.resume:
            raise InputError("--overwrite and --resume contradict each other; give one of them")
