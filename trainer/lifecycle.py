"""The commands around a published model: versions, rollback, publish, calibrate, harvest. Part of trainer/cli.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer import build, dataset, learnt, publish, registry, work
from trainer.dataset import DataError
from trainer.files import write_whole
from trainer.recipe import Review, review_of
from trainer.registry import Judgement
from trainer.terminal import REFUSED, DataFile, Directory, Json, SplitName, console

app = typer.Typer()


@app.command()
def versions(model: Directory, as_json: Json = False) -> None:
    """List the versions of a model that have been published, and which is in place."""
    current, known = publish.version_in_place(model), registry.versions(model)
    if as_json:
        print(json.dumps({"current": current, "versions": [version.model_dump() for version in known]}))
        return
    table = Table(title=f"versions of {model}")
    for column in ("version", "published, UTC", "accuracy", "gate", "replaced"):
        table.add_column(column, no_wrap=True)
    for version in known:
        accuracy = "" if version.accuracy is None else f"{version.accuracy:.4f}"
        judged = "" if version.gate is None else "passed" if version.gate.passed else "overruled"
        here = " *" if version.version == current else ""
        table.add_row(version.version + here, version.published[:19], accuracy, judged, version.replaced or "")
    Console().print(table)
    if not known:
        Console().print(f"none yet: {current or 'nothing'} is in place, and nothing has been published over it")


@app.command()
def rollback(
    model: Directory, to: Annotated[str | None, typer.Option(help="The version; else the one that the present one replaced.")] = None
) -> None:
    """Build an earlier version again from what was kept of it, check it, and put it in place."""
    with work.alone(model):
        before = publish.version_in_place(model)
        with console.status("building"):
            entry = publish.rollback(model, to)
        _say_published(model, entry.version, before)


@app.command("publish")
def publish_command(model: Directory) -> None:
    """Publish what the last run left unpublished, although the gate refused it."""
    with work.alone(model):
        measured = model / publish.CANDIDATE / build.RECORD_FILE
        record = measured.read_bytes() if measured.is_file() else None
        entry = publish.publish(model, Judgement(passed=False, reasons=("published by hand",)))
        if record is not None:
            write_whole(model / build.RECORD_FILE, record)
        _say_published(model, entry.version, entry.replaced)


@app.command()
def calibrate(
    model: Directory,
    data: DataFile,
    split: SplitName = "all",
    precision: Annotated[
        float | None,
        typer.Option(help="Share of the routed queries that must be right; else the one that the model has.", show_default=False),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Guarantee it at this confidence, by label where there are queries enough; else at the model's own, if no share is given.",
            show_default=False,
        ),
    ] = None,
    out_of_scope_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the queries to come that belong to no label; else the file's, whatever share the model has.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Publish it although more of these queries would be answered wrongly.")] = False,
) -> None:
    """Choose temperature, offset and thresholds anew on labelled queries that the model was not trained on; publish it as a new version.

    Exit code 3 if the accuracy on them falls by more than the model's gate allows.
    """
    from trainer.recalibrate import recalibrate  # scikit-learn is not needed to build

    metadata = build.read_metadata(model)
    training = metadata["training"]
    present = Review.model_validate(training["recipe"].get("review", {}))
    review = review_of(
        precision=present.precision if precision is None else precision,
        confidence=present.confidence if confidence is None and out_of_scope_share is None else confidence,
        out_of_scope_share=out_of_scope_share,
    )
    names = [label["name"] for label in metadata["labels"]["labels"]]
    examples = learnt.without_learnt(dataset.part_of(data, split, training, names), split, training, _say)
    if examples is None:
        raise DataError(
            f"the model has learnt from these queries of {data}, or may have, and is surer of what it has learnt: "
            "give others, that it has not seen"
        )
    with work.alone(model):
        entry = recalibrate(model, examples, data.name, review, _say, force=force)
        if entry is None:
            raise typer.Exit(REFUSED)
        _say_published(model, entry.version, entry.replaced)


@app.command("harvest")
def harvest_command(
    output: Annotated[Path, typer.Option(help="The data file to add to: a JSON array, made if it is not there.")],
    model: Annotated[Path | None, typer.Option(help="A model's directory: only its labels are taken.", show_default=False)] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis (POINTSMAN_REDIS_URL).", show_default=False)] = None,
    namespace: Annotated[str | None, typer.Option(help="Prefix of all streams (POINTSMAN_NAMESPACE).", show_default=False)] = None,
    trim: Annotated[bool, typer.Option("--trim", help="Delete what was harvested from the stream.")] = False,
    show_text: Annotated[bool, typer.Option("--show-text", help="Print texts, which are personal data.")] = False,
    as_json: Json = False,
) -> None:
    """Turn people's corrections (the stream NAMESPACE:corrections) into examples to train on."""
    from trainer.harvest import harvest  # Redis is not needed to build

    labels = None if model is None else [label["name"] for label in build.read_metadata(model)["labels"]["labels"]]
    found = harvest(output, labels, redis_url, namespace, trim=trim)
    counts = {name: found.changes[name] for name in ("new", "changed", "known")}
    if as_json:
        unusable = [asdict(each) for each in found.unusable]
        for row in unusable if not show_text else ():
            del row["text"]
        print(json.dumps(counts | {"unusable": unusable, "trimmed": found.trimmed, "rows": found.rows}))
        return
    out = Console(soft_wrap=True, highlight=False, markup=False)
    for each in found.unusable:
        out.print(f"{each.stream_id}  {each.id!r}  {each.reason}" + (f": {each.text!r}" if show_text else ""))
    changed = ", ".join(f"{count} {name}" for name, count in counts.items())
    out.print(
        f"{changed}, {len(found.unusable)} unusable and left in the stream; {found.trimmed} deleted from it; {output} has {found.rows} rows"
    )


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _say_published(model: Path, version: str, before: str | None) -> None:
    place = f" in the place of {before}" if before else ""
    console.print(f"published {build.model_file_of(model)}, version {version}{place}", soft_wrap=True)
    try:
        from trainer import figures, report  # publishing needs no plots
    except ModuleNotFoundError:
        console.print(
            f"its report is not written, for want of the trainer's libraries: `python -m trainer report {model}` does", soft_wrap=True
        )
        return
    for path in report.write(model, build.read_metadata(model), figures.read_record(model, version), model):
        console.print(f"wrote {path}", soft_wrap=True)
