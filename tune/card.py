"""The model card: what a person should know before using a model file, as Markdown.

    write_card(exported, run_folder)     card.md beside the model file

After Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019, arXiv:1810.03993). Every figure in it comes from
the run, the export or the data; what nobody has measured is said to be so.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME, Gate
from eval.intervals import interval, nan_mean
from eval.metrics import mean_average_precision
from train import checkpoint
from train.cheaper import FREQUENT
from train.publish import CARD, Exported, sha256

_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow", "simplejpeg")


def write_card(exported: Exported, folder: Path, chosen: str = "") -> Path:
    """Write card.md beside the model file, by an atomic rename.

    Args:
        exported: the model.
        folder: of the run that it comes from; its environment.json is read where there is one.
        chosen: how the model was chosen, such as "The best of 12 trials of a search.", a sentence of the card.
    """
    path = folder / checkpoint.ENVIRONMENT
    environment = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    card = exported.path.with_name(CARD)
    partial = card.with_name(card.name + ".part")
    partial.write_text(model_card(exported, environment, chosen), encoding="utf-8")
    os.replace(partial, card)
    return card


def model_card(exported: Exported, environment: Mapping[str, Any], chosen: str = "") -> str:
    """The card as Markdown.

    Args:
        exported: the model, with its logits of the selection part.
        environment: content of the run's environment.json, {} where there is none.
        chosen: as in `write_card`.
    """
    config = json.loads(exported.info.config)
    sections = [
        _head(exported),
        _use(exported),
        _figures(exported, chosen),
        _classes(exported),
        _thresholds(exported),
        _data(exported, config),
        _limits(exported),
        _file(exported),
        _origin(config, environment),
        _reproduce(exported, config, environment),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _head(exported: Exported) -> list[str]:
    info, labels = exported.info, exported.examples.labels
    figures = "; ".join(
        f"**{_percent(mean)} %** [{_percent(low)}, {_percent(high)}] over {what}"
        for what, mean, low, high in _means(exported)
    )
    rows = {
        "Answers": f"{len(info.classes)} independent yes/no questions about a photograph, one a class",
        "Trained on": f"{labels.name}, {len(exported.examples.train):,} images",
        "Selection mAP": f"{figures}; optimistic, see Figures",
        "Input": f"RGB, {info.size} x {info.size} px",
        "Arithmetic": info.precision,
        "File": f"`{exported.path.name}`, {exported.path.stat().st_size / 1e6:.1f} MB",
        "SHA-256": f"`{sha256(exported.path)}`",
        "MLflow run": f"`{info.run_id}`" if info.run_id else "not tracked",
        "Card written": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    return [
        f"# Model card: {info.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
    ]


def _use(exported: Exported) -> list[str]:
    classes = exported.info.classes
    lines = [
        "## Intended use",
        "",
        f"Sorting and labelling photographs like those of {exported.examples.labels.name}: which of the "
        f"{len(classes)} classes are in the image, each judged on its own, and which images of a collection most "
        "likely show a class.",
        "",
        "Not for:",
        "",
        "- where an object is or how many there are: an answer is about the whole image;",
        f"- anything that is not one of the {len(classes)} classes: it has no answer for \"something else\", and low "
        "scores everywhere do not mean an empty image;",
        "- images of another kind (drawings, medical, aerial, thermal): none were measured;",
        "- decisions about people, or any in which a wrong answer does harm, without a person who looks at the image.",
    ]  # fmt: skip
    if "person" in classes:
        lines.insert(-1, "- who somebody is: the class `person` says that somebody is in the image, no more;")
    return lines


def _figures(exported: Exported, chosen: str) -> list[str]:
    scores, fit = exported.scores, exported.fit
    rows = [
        f"| mAP over {what} | {_percent(mean)} | {_percent(low)} to {_percent(high)} |"
        for what, mean, low, high in _means(exported)
    ]
    return [
        "## Figures",
        "",
        f"On the {len(scores.image_ids):,} images of the selection part, which no weight was fitted to. 95 % intervals "
        "are from the bootstrap over images; average precision is VOC 2010's.",
        "",
        "| | % | 95 % interval |",
        "|---|--:|--:|",
        *rows,
        f"| Expected calibration error, cross-fitted | {_percent(fit.ece_after)} | before calibration: "
        f"{_percent(fit.ece_before)} |",
        "",
        "**These figures are optimistic.** " + (f"{chosen} " if chosen else "")
        + "The same images chose the epoch, the calibration and the thresholds, and whatever settings were compared "
        "on them; the intervals do not hold that. The honest figures come from images that chose nothing: score "
        "`val` once through the server and judge it (last commands of this card).",
    ]  # fmt: skip


def _classes(exported: Exported) -> list[str]:
    info, scores = exported.info, exported.scores
    labels, train = exported.examples.labels, exported.examples.train
    trained = labels.subset(train, "").positives()
    positives, ap = _positives(exported), scores.ap()
    low, high = interval(scores.replicates())
    lines = [
        "## Classes",
        "",
        f"| class | positives in training | in selection | AP % | 95 % interval | threshold | for precision "
        f"{info.wished_precision:g} |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    wished = info.precision_thresholds or (1.0,) * len(info.classes)
    for c, name in enumerate(info.classes):
        few = " *" if positives[c] < FREQUENT else ""
        worth, between = "none", "none"
        if np.isfinite(ap[c]):
            worth, between = _percent(ap[c]), f"{_percent(low[c])} to {_percent(high[c])}"
        reached = f"{wished[c]:.2f}" if wished[c] < 1 else "not reached"
        lines.append(
            f"| {_cell(name)}{few} | {trained[c]:,} | {positives[c]:,} | {worth} | {between} | "
            f"{info.thresholds[c]:.2f} | {reached} |"
        )
    rare = [name for name, count in zip(info.classes, positives, strict=True) if count < FREQUENT]
    if rare:
        lines += [
            "",
            f"\\* Fewer than {FREQUENT} positives in the selection part ({len(rare)} of {len(info.classes)} classes): "
            "AP and thresholds hang on single images there, and an interval cannot show what was never drawn.",
        ]
    return lines


def _thresholds(exported: Exported) -> list[str]:
    info, fit = exported.info, exported.fit
    nll = ", ".join(f"{kind} {value:.4f}" for kind, value in fit.nll.items())
    how = {
        "platt": "a line on each class's logit (Platt's method)",
        "temperature": "one temperature for all classes",
        "none": "none; the score is the sigmoid of the logit",
    }
    lines = [
        "## Calibration and thresholds",
        "",
        f"- Calibration: {how.get(info.calibration, info.calibration)}, inside the file. Cross-fitted negative "
        f"log-likelihood in nats a pair: {nll}.",
        "- Threshold: the score of the highest F1 on the selection part, for each class. A label is shown where its "
        "score is above.",
        f"- For precision {info.wished_precision:g}: the lowest score above which that share of the images was right "
        "there. Expect less on new images.",
    ]
    if fit.calibration.kept:
        names = ", ".join(info.classes[c] for c in fit.calibration.kept)
        lines.append(f"- Not calibrated, for want of both answers or of any skill: {names}.")
    return lines


def _data(exported: Exported, config: Mapping[str, Any]) -> list[str]:
    info, examples, data = exported.info, exported.examples, config.get("data", {})
    labels = examples.labels
    lines = [
        "## Data",
        "",
        f"- {labels.name}: {len(labels):,} images, {len(labels.classes)} classes, "
        f"{int(labels.positives().sum()):,} positive and {int(labels.ignored().sum()):,} ignored pairs of image and "
        f"class. Fingerprint of the labels `{info.data_fingerprint}`.",
        f"- {len(examples.train):,} images to train on, {len(examples.selection):,} to select on (share "
        f"{data.get('selection')}, stratified, seed {data.get('selection_seed')}).",
        "- An ignored pair (VOC: only difficult objects of the class) counts nowhere, neither in the loss nor in a "
        "figure.",
    ]
    if labels.fingerprint() != info.data_fingerprint:
        lines.append(
            f"- **The data have changed since the training**: their fingerprint is `{labels.fingerprint()}` now, and "
            "the figures of this card are of the data as they are now."
        )
    return lines


def _limits(exported: Exported) -> list[str]:
    info = exported.info
    trained = exported.examples.labels.subset(exported.examples.train, "").positives()
    unseen = [name for name, count in zip(info.classes, trained, strict=True) if count == 0]
    lines = [
        "## Limits",
        "",
        "- What the data show seldom, the model knows badly, and what their labels get wrong it has learnt.",
        "- Not measured: other cameras, years, countries or groups of people than the data's; damaged, hidden or "
        "deliberately altered images.",
        f"- Images are squashed to {info.size} x {info.size} px: small objects and long images lose most.",
        "- Calibration holds where the classes are as frequent as in the data; where they are not, the order of the "
        "scores stays useful and the scores themselves do not.",
    ]
    if unseen:
        lines.append(f"- **Never seen in training**: {', '.join(unseen)}. Their answers mean nothing.")
    if info.gate:
        gate = Gate(**info.gate)  # type: ignore[arg-type]
        lines.append(
            f"- {gate.precision}: mAP on the selection part {_percent(gate.map)} % instead of "
            f"{_percent(gate.map_float32)} % in float32, at {gate.images_per_second:.0f} instead of "
            f"{gate.images_per_second_float32:.0f} images/s on the export's CPU."
        )
    return lines


def _file(exported: Exported) -> list[str]:
    info, classes = exported.info, len(exported.info.classes)
    of = "the float32 file that this one was made from" if info.gate else "this file"
    return [
        "## The file",
        "",
        f"- ONNX, any batch size N. `{INPUT_NAME}`: uint8[N, {info.size}, {info.size}, 3]; `{LOGIT_NAME}` and "
        f"`{SCORE_NAME}`: float32[N, {classes}].",
        f"- Preprocessing `{info.preprocessing}`: the server refuses the file where its own pixels would differ.",
        f"- Parity of {of} with torch: largest |logit difference| {exported.parity.difference:.1e} at batch 1, 2 and "
        "32 (gate 1e-4).",
        *(["- The logit is the mean over the image and its mirror image."] if info.flip else []),
    ]


def _origin(config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    model = config.get("model", {})
    weights, digest = str(model.get("weights", "")), environment.get("model", {}).get("weights_sha256", "")
    start = {
        "imagenet": f"torchvision's ImageNet weights of {model.get('backbone')}; torchvision leaves their licence to "
        "the terms of the data, and ImageNet's are for research",
        "none": "random numbers: no one else's weights are in it",
        "": "not recorded",
    }.get(
        weights,
        f"the file `{Path(weights).name}`{f', SHA-256 `{digest}`' if digest else ''}; its licence is not recorded",
    )
    return [
        "## Licence and origin",
        "",
        f"- Weights started from {start}.",
        "- Licence of the images and labels: not recorded; that of VOC's photographs is Flickr's terms of use.",
        "- The code that trained it is under Apache-2.0. Whether the model may be used for a purpose follows from all "
        "three.",
    ]


def _reproduce(exported: Exported, config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    info = exported.info
    session = (environment.get("sessions") or [{}])[-1]
    hardware, processes = session.get("hardware", {}), session.get("processes", 1)
    launch = "python" if processes == 1 else f"accelerate launch --num_processes {processes}"
    revision = info.source_revision.removesuffix("+dirty")
    commands = []
    if revision:
        changed = "   # and changes that were not committed" if info.source_revision != revision else ""
        commands.append(f"git checkout {revision}{changed}")
    if info.run_id:
        commands.append(
            f"mlflow artifacts download --run-id {info.run_id} --artifact-path config.json --dst-path ."
        )
    undo = "".join(f" --no-{name}" for name in ("resume", "overwrite") if config.get(name))
    precision = {"int8": " --precision int8", "float16": " --precision fp16"}.get(info.precision, "")
    commands += [
        f"{launch} train/main.py --config config.json{undo} --out again",
        f"python train/export.py --run again --out again.onnx --calibration {info.calibration} --wished-precision "
        f"{info.wished_precision:g}{precision}",
    ]
    versions = session.get("versions", {})
    known = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if name in versions)
    machine = f"{hardware.get('cores')} cores of {hardware.get('cpu') or 'a CPU'}"
    if hardware.get("gpu"):
        machine = f"{hardware['gpus']} x {hardware['gpu']}"
    lines = ["## How to reproduce", "", "```bash", *commands, "```", ""]
    lines.append(
        "The paths in `config.json` are those of the training: give `--data.root`, `--data.labels` or "
        "`--model.weights` where they lie elsewhere."
    )
    if not info.run_id:
        lines.append(
            "`config.json` lies in the run's folder, and as `tailacc.config` in the file's metadata."
        )
    lines.append(f"Seed {config.get('seed')}; the split has its own (see Data).")
    if hardware:
        lines.append(
            f"Trained on {machine}, {processes} process(es), Python {session.get('python')}, {known}."
        )
    lines += [
        "Other devices and versions give slightly other weights.",
        "",
        "The honest figures, from the served scores of images that chose nothing:",
        "",
        "```bash",
        f"python serve/server.py --model {exported.path.name} --listen 127.0.0.1:8001",
        "python serve/client.py score --server 127.0.0.1:8001 --images DEVKIT --split val --out scores.parquet",
        "python eval/report.py --scores scores.parquet --data DEVKIT --split val --out report",
        "```",
    ]
    return lines


def _means(exported: Exported) -> list[tuple[str, float, float, float]]:
    """(over what, mAP, low, high): over the classes with a positive, and over the frequent ones where that differs."""
    scores = exported.scores
    ap, samples = scores.ap(), scores.replicates()
    known, frequent = np.isfinite(ap), _positives(exported) >= FREQUENT
    parts = [(f"{known.sum()} classes", known)]
    if frequent.any() and (frequent != known).any():
        parts.append((f"the {frequent.sum()} with {FREQUENT} positives or more", frequent))
    out = []
    for what, columns in parts:
        low, high = interval(nan_mean(samples[:, columns]))
        out.append((what, mean_average_precision(ap[columns])[0], float(low), float(high)))
    return out


def _positives(exported: Exported) -> Any:
    """int64[C]: positives of each class in the selection part."""
    return exported.examples.labels.subset(exported.examples.selection, "").positives()


def _cell(text: str) -> str:
    """Text for a table: a bar would end the cell."""
    return text.replace("|", "\\|")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
