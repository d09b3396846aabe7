"""Labels of a few images in the terminal, for a person."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.errors import InputError
from serve.config import ClassifyConfig
from serve.parts import Part
from serve.remote import CallFailed, ModelChanged, Servers
from serve.sending import Job, Sender, split_jobs


async def classify(config: ClassifyConfig) -> int:
    """Print each image's labels with their scores, highest first. Returns 1 where an image failed, else 0.

    A label is shown where its score is above the model's threshold for the class; where none is, the best one
    is named in brackets.

    Raises:
        InputError: a file is not there, or no server is ready.
    """
    config.check()
    for path in config.images:
        if not path.is_file():
            raise InputError(
                f"no image file at {path} (a whole folder: python serve/client.py score --images DIR)"
            )
    jobs = [Job(row, str(row), path, path.stat().st_size) for row, path in enumerate(config.images)]
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("labels and scores")
    failed = 0
    async with Servers(config.connection) as servers:
        # One call at a time: no bound on the bytes is needed beyond the servers' own.
        with Sender(servers, pixels=0, budget=servers.request_bytes) as sender:
            for chunk in split_jobs(jobs, servers.request_images, servers.request_bytes):
                try:
                    parts = await sender.score(chunk)
                except (CallFailed, ModelChanged) as error:
                    raise InputError(str(error)) from error
                for job, part in sorted(parts, key=lambda pair: pair[0].row):
                    failed += bool(part.reason)
                    table.add_row(escape(str(job.path)), labels_of(part, servers.model))
        ref = servers.model.model
        table.caption = (
            f"{ref.name} version {ref.version} ({ref.hash[:16]}) at {', '.join(servers.addresses)}"
        )
    Console().print(table)
    return 1 if failed else 0


def labels_of(part: Part, model: Any) -> str:
    """One line of rich markup: "dog 0.97, person 0.61", or "(none; best: cat 0.21)", or what went wrong."""
    if part.reason:
        return f"[red]{escape(part.reason)}[/red]"
    ranked = sorted(
        zip(model.classes, part.score, model.thresholds, strict=True), key=lambda row: row[1], reverse=True
    )
    shown = [f"{escape(name)} {score:.2f}" for name, score, threshold in ranked if score > threshold]
    if shown:
        return ", ".join(shown)
    name, score, _ = ranked[0]
    return f"[dim](none above its threshold; best: {escape(name)} {score:.2f})[/dim]"
