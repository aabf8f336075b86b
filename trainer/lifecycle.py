"""The commands around a published model: versions, rollback, publish, harvest. Part of trainer/cli.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer import build, publish, registry
from trainer.dataset import DataError, part_of
from trainer.recipe import Gate
from trainer.registry import Judgement

app = typer.Typer()
err = Console(stderr=True)
REFUSED = 3
"""Exit code where a gate refused a model, or a form of one."""

Directory = Annotated[Path, typer.Argument(help="A model's directory, such as models/household.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]


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
    before = publish.version_in_place(model)
    with err.status("building"):
        entry = publish.rollback(model, to)
    _say_published(model, entry.version, before)


@app.command("publish")
def publish_command(model: Directory) -> None:
    """Publish what the last run left unpublished, although the gate refused it."""
    entry = publish.publish(model, Judgement(passed=False, reasons=("published by hand",)))
    _say_published(model, entry.version, entry.replaced)


@app.command("parity")
def parity_command(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")],
    data: Annotated[Path, typer.Option(help="A JSON array or JSONL of {instruction, input, output}, or CSV text,label.")],
    split: Annotated[str, typer.Option(help="all, train, validation or test.")] = "validation",
    forms: Annotated[list[str] | None, typer.Option("--format", help="A weight format; may be given again. Else all.")] = None,
    as_json: Json = False,
) -> None:
    """Whether the model answers alike in other weight formats. Exit code 3 if not in one of them."""
    from trainer import parity

    unknown = sorted(set(forms or ()) - set(parity.FORMATS))
    if unknown:
        raise DataError(f"there is no format {', '.join(unknown)}: use {', '.join(parity.FORMATS)}")
    card = build.read_metadata(build.directory_of(model))
    texts = [example.text for example in part_of(data, split, card["training"])]
    with err.status("comparing") as status:
        found = list(parity.in_formats(model, texts, forms or parity.FORMATS, lambda form: status.update(f"comparing with {form}")))
    complaints = [words for each in found if (words := parity.complaint(each, Gate()))]
    if as_json:
        print(json.dumps({"n": len(texts), "formats": [asdict(each) for each in found], "complaints": complaints}))
    else:
        table = Table(title=f"{model.name} and its other formats on {len(texts)} queries of {data.name} ({split})")
        for column in ("format", "same label", "probabilities apart, mean", "largest"):
            table.add_column(column, justify="left" if column == "format" else "right")
        for each in found:
            table.add_row(each.form, f"{each.same_label:.1%}", f"{each.mean_difference:.4f}", f"{each.largest_difference:.4f}")
        Console().print(table)
        for words in complaints:
            err.print(words, style="red", soft_wrap=True)
    if complaints:
        raise typer.Exit(REFUSED)


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


def _say_published(model: Path, version: str, before: str | None) -> None:
    place = f" in the place of {before}" if before else ""
    err.print(f"published {build.model_file_of(model)}, version {version}{place}", soft_wrap=True)
