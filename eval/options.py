"""The options of `eval/report.py`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportConfig:
    """What to judge, against what, and where the report goes."""

    scores: Path = Path("runs/scores.parquet")
    """Score file: Parquet from `serve/client.py score`, or a CSV `image,<class>...` of anyone's scores."""
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
