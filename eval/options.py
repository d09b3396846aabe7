"""The options of the commands in eval/."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class ReportConfig:
    """What to judge, against what, and where the report goes."""

    scores: Path = Path("runs/scores.parquet")
    """Score file: Parquet from `serve/client.py score`, or a CSV `image,<class>...` of anyone's scores."""
    also: Path | None = None
    """Score file of another model on the same images, to show beside, such as the float32 one of a cheaper model."""
    data: Path | None = None
    """Folder that holds VOC2012/ or VOC2007/ (default: $VOC_ROOT, or else the synthetic devkit)."""
    split: str = "val"
    """Split of the devkit."""
    labels: Path | None = None
    """Labels as a CSV `image,<class>...` with 1, 0 or nothing (= ignored), in place of --data."""
    images: Path | None = None
    """Folder of the photographs that --labels names (default: as the CSV says, if they are there)."""
    out: Path = Path("runs/report")
    """Folder of the report; a previous report there is replaced, anything else is refused."""
    classes: str = ""
    """Comma-separated classes over which a second mean is printed, such as cat,dog."""
    allow_missing: bool = False
    """Leave out labelled images that have no score, instead of refusing."""
    replicates: int = 1000
    """Bootstrap replicates behind the 95 % intervals."""
    seed: int = 0
    """Seed of the bootstrap and of the choice of gallery classes."""
    run: Path | None = None
    """Folder of the training run, for the PDF and to find its MLflow run (default: as the score file says)."""
    explorer: bool = True
    """Write explorer.html, one self-contained page on which a person moves t and looks at the images."""
    pdf: bool = False
    """Also write report.pdf: 2 to 5 pages from which another person can make the result again."""
    feedback: bool = True
    """Write the figures to the model's MLflow run, under served/, where the run is known."""


@dataclass(frozen=True)
class CompareConfig:
    """Two score files, and the labels that judge both."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Score file, Parquet or CSV."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Score file of the same images; differences are A - B."""
    data: Path | None = None
    """Folder that holds VOC2012/ or VOC2007/ (default: $VOC_ROOT, or else the synthetic devkit)."""
    split: str = "val"
    """Split of the devkit."""
    labels: Path | None = None
    """Labels as a CSV `image,<class>...` with 1, 0 or nothing (= ignored), in place of --data."""
    classes: str = ""
    """Comma-separated classes to compare, such as cat,dog (default: all that both files score)."""
    allow_missing: bool = False
    """Compare on the images that both files score, instead of refusing."""
    replicates: int = 1000
    """Bootstrap replicates behind the 95 % intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class DoctorConfig:
    """Whose scores, which labels, and the number to explain."""

    scores: Path
    """Score file, Parquet or CSV."""
    data: Path | None = None
    """Folder that holds VOC2012/ or VOC2007/ (default: $VOC_ROOT, or else the synthetic devkit)."""
    split: str = "val"
    """Split of the devkit."""
    labels: Path | None = None
    """Labels as a CSV `image,<class>...` with 1, 0 or nothing (= ignored), in place of --data."""
    published: str = ""
    """The number to explain, as it was printed: 0.92 or 92.0. The nearest figures come first."""
    allow_missing: bool = False
    """Leave out labelled images that have no score, instead of refusing."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class SubmitConfig:
    """What to submit to the VOC evaluation server, or an archive to check."""

    scores: Path = Path("runs/scores.parquet")
    """Score file of every image of the split, Parquet or CSV."""
    out: Path = Path("results.tar.gz")
    """The archive to write, .tar.gz or .tgz."""
    check: Path | None = None
    """Check this archive instead of writing one."""
    comp: Literal["comp1", "comp2"] = "comp2"
    """comp1: trained on VOC's own training images alone; comp2: anything else, pre-trained weights included."""
    data: Path | None = None
    """Folder that holds VOC2012/ or VOC2007/ with the split (default: $VOC_ROOT, or else the synthetic devkit)."""
    split: str = "test"
    """Split of the devkit; the server takes test."""
    config: Path | None = None
    """config.json of the training run, which says what the weights started from (default: the MLflow run)."""
    trained_from_scratch: bool = False
    """State for comp1 that no pre-trained weights were used, where neither file nor MLflow run says it."""
