"""What the paper says of the training: network, loss, schedule, trials, machine; each unknown is said."""

from collections.abc import Mapping
from typing import Any

from eval.facts import Facts, Search
from eval.formulas import FORMULAS, REDUCTION
from eval.table import percent

_SHAPES = {
    "cosine": "linear warm-up over {:g} % of the steps, then a cosine to zero",
    "one_cycle": "one cycle: up over {:g} % of the steps, then down to zero, the momentum the other way",
}
UNKNOWN = "not recorded"
# Above this, the paper would be longer than five pages; MLflow has the rest.
MAX_TRIALS = 24
# Settings that say where a run is written and read, not how it is trained.
_PLACES = ("out", "overwrite", "resume", "data.root", "data.labels", "data.cache", "tracking.")


def model_rows(facts: Facts) -> list[list[str]]:
    """Names and values: the network and its file."""
    config, files = facts.config, facts.score_file
    weights = str(config.get("model.weights", UNKNOWN)).rpartition("/")[2]
    if facts.weights_sha256:
        weights += f" (SHA-256 {facts.weights_sha256[:16]}…)"
    size = config.get("data.size")
    return [
        ["backbone", str(config.get("model.backbone", UNKNOWN))],
        [
            "starting weights",
            {"none": "none (random)", "imagenet": "ImageNet (torchvision)"}.get(weights, weights),
        ],
        ["head", f"{config['model.head']}, dropout {config['model.dropout']}" if config else UNKNOWN],
        ["parameters", f"{facts.parameters:,}" if facts.parameters else UNKNOWN],
        ["input", f"{size} × {size} px, RGB" if size else UNKNOWN],
        ["preprocessing", files.get("preprocessing", facts.data.preprocessing if facts.data else UNKNOWN)],
        ["model version", files.get("model_version", UNKNOWN)],
        [
            "scored by",
            f"server version {files['server_version']}" if files.get("server_version") else UNKNOWN,
        ],
        ["MLflow run", facts.run_id or UNKNOWN],
    ]


def loss_content(facts: Facts) -> dict[str, Any] | None:
    """The loss with its formula; None where it is not recorded."""
    name = str(facts.config.get("loss.name", ""))
    if name not in FORMULAS:
        return None
    formula = FORMULAS[name]
    return {
        "name": name,
        "title": formula.title,
        "math": formula.math,
        "reduction": REDUCTION,
        "settings": [[symbol, f"{facts.config[key]:g}"] for symbol, key in formula.settings],
        "source": formula.source,
    }


def training_rows(facts: Facts) -> list[list[str]]:
    """Names and values of the optimiser, schedule, augmentation and so on; empty where they are not recorded."""
    config = facts.config
    if not config:
        return []
    wanted, done = config["schedule.epochs"], len(facts.history)
    patience = config["schedule.patience"]
    kept = (
        f"epoch {facts.best_epoch}, selection mAP {percent(facts.best_map)} %"
        if facts.best_map is not None
        else UNKNOWN
    )
    precision = str(facts.sessions[-1]["precision"]) if facts.sessions else UNKNOWN
    return [
        [
            "optimiser",
            f"AdamW; peak learning rate {config['optimizer.lr']:.4g} (head), {config['optimizer.backbone_lr']:.4g} "
            f"(backbone); weight decay {config['optimizer.weight_decay']:g} on matrices and convolutions; "
            + (
                f"gradient norm at most {config['optimizer.clip']:g}"
                if config["optimizer.clip"]
                else "no limit on the gradient"
            ),
        ],
        [
            "schedule",
            f"{_SHAPES[config.get('schedule.shape', 'cosine')].format(100 * config['schedule.warmup'])}; "
            f"{wanted} epochs{', stopped after ' + str(done) if done < wanted else ''}; "
            + (
                f"stop after {patience} epochs without a better selection mAP"
                if patience
                else "no patience limit"
            ),
        ],
        ["batch", f"{config['batch_size']} images a step over all processes"],
        [
            "averaging",
            f"exponential moving average of the weights, decay {config['ema']:g}"
            if config["ema"]
            else "none",
        ],
        ["augmentation", augmentation(config)],
        *_further(config),
        [
            "precision",
            {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}.get(
                precision, precision
            ),
        ],
        ["seed", f"{config['seed']} (initial weights, order, augmentation)"],
        ["kept", kept],
    ]


def augmentation(config: Mapping[str, Any]) -> str:
    """The random changes of training images in words, from the flat settings of a run."""

    def number(name: str) -> float:
        return float(config.get(f"augment.{name}", 0))

    crops = {
        "none": "the whole image",
        "area": f"crop of {100 * number('min_area'):g} to 100 % of the area, aspect ratio within "
        f"1/{number('aspect'):g} to {number('aspect'):g}",
        "multiscale": "crops of fixed scales at fixed places",
    }
    clauses = [crops[config.get("augment.crop", "area")]]
    clauses.append(f"left-right flip with probability {number('flip'):g}")
    clauses += [
        f"{name} ± {100 * number(name):g} %"
        for name in ("brightness", "contrast", "saturation")
        if number(name)
    ]
    if number("hue"):
        clauses.append(f"hue ± {number('hue'):g} of the circle")
    if number("randaugment_ops"):
        clauses.append(
            f"RandAugment, {number('randaugment_ops'):g} operations of magnitude {number('randaugment_magnitude'):g}"
        )
    if number("cutout"):
        clauses.append(
            f"cutout of side {number('cutout'):g} with probability {number('cutout_probability'):g}"
        )
    for name, word in (("mixup", "MixUp"), ("cutmix", "CutMix")):
        if number(name):
            clauses.append(f"{word} with alpha {number(name):g}")
    if number("mixup") or number("cutmix"):
        clauses.append(f"mixed with probability {number('mix_probability'):g}")
    return "; ".join(clauses)


def _further(config: Mapping[str, Any]) -> list[list[str]]:
    """Rows for what is off by default."""
    rows = []
    if size := config.get("data.train_size"):
        rows.append(["training size", f"{size} px; judged and served at {config['data.size']} px"])
    if blocks := config.get("model.frozen_blocks"):
        rows.append(["not trained", f"the stem and the first {blocks} blocks of the backbone"])
    if smoothing := config.get("loss.label_smoothing"):
        rows.append(["label smoothing", f"{smoothing:g}"])
    if config.get("flip_test"):
        rows.append(["at test", "mean of the logits of the image and its mirror image"])
    return rows


def search_content(search: Search | None) -> dict[str, Any] | None:
    """The table of trials with the settings that differ between them; None without a search."""
    if search is None:
        return None
    shown = search.trials[:MAX_TRIALS]
    keys = sorted({key for trial in search.trials for key in trial.settings if not key.startswith(_PLACES)})
    varied = [k for k in keys if len({trial.settings.get(k) for trial in search.trials}) > 1]
    rows = [
        [
            f"{percent(trial.best_map)}" if trial.best_map is not None else "n/a",
            trial.state,
            str(trial.epochs) if trial.epochs else "n/a",
            *(_short(trial.settings.get(key, UNKNOWN)) for key in varied),
        ]
        for trial in shown
    ]
    settings = search.settings
    text = f"{len(search.trials)} configurations were tried"
    if "search.sampler" in settings:
        scheduler = settings.get(
            "search.scheduler", "asha" if str(settings.get("search.asha")) == "True" else "none"
        )
        asha = f"{scheduler.upper()} stops those that lag behind" if scheduler != "none" else "none pruned"
        text += (
            f" (sampler {settings['search.sampler']}, {asha}, "
            f"seed {settings['seed']}), each judged by its best mAP on the selection part"
        )
    text += ". The settings that differ between them are shown; all others are as in the command at the end."
    hidden = len(search.trials) - len(shown)
    return {
        "text": text,
        "columns": ["selection mAP, %", "state", "epochs", *varied],
        "rows": rows,
        "chosen": [trial.chosen for trial in shown],
        "more": f"{hidden} more trials, all below, are in MLflow." if hidden else "",
    }


def _short(text: str) -> str:
    """A number to four digits; a path to its name; anything else as it is."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text.rpartition("/")[2]


def machine_rows(facts: Facts) -> list[list[str]]:
    """Names and values: hardware, time and source revision."""
    if not facts.sessions:
        return [["hardware", UNKNOWN], ["time", UNKNOWN], ["source revision", UNKNOWN]]
    last = facts.sessions[-1]
    hardware = last["hardware"]
    words = f"{hardware['cpu']}, {hardware['cores']} cores ({hardware['threads']} used by PyTorch)"
    if hardware["gpus"]:
        words += f"; {hardware['gpus']} × {hardware['gpu']}"
    seconds = sum(session["seconds"] for session in facts.sessions)
    rates = [row["time/images_per_second"] for row in facts.history]
    return [
        ["hardware", words],
        ["processes", str(last["processes"])],
        [
            "time",
            f"{_duration(seconds)} in {len(facts.sessions)} session{'s' if len(facts.sessions) > 1 else ''}, "
            f"from {last['started']}"
            + (f"; {sum(rates) / len(rates):,.0f} images/s in training" if rates else ""),
        ],
        ["source revision", last["source_revision"] or UNKNOWN],
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def versions_text(facts: Facts) -> str:
    """System, Python and packages in one line."""
    if not facts.sessions:
        return UNKNOWN
    last: Mapping[str, Any] = facts.sessions[-1]
    parts = [last["system"], f"Python {last['python']}", *(f"{k} {v}" for k, v in last["versions"].items())]
    return ", ".join(parts)
