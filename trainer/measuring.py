"""The commands that measure: evaluate, baseline, peers, parity, report. Part of trainer/cli.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer import build as building
from trainer import dataset, learnt
from trainer.base import Base, cache_directory
from trainer.dataset import DataError, Example
from trainer.recipe import Gate
from trainer.terminal import REFUSED, DataFile, Json, SplitName, console, progress
from worker.classifier import Classifier
from worker.classifier.formats import FORMATS, in_format
from worker.classifier.model_file import content_hash

app = typer.Typer()

TrainFiles = Annotated[
    list[Path] | None, typer.Option("--train", help="What to train the peers on; may be given again.", show_default=False)
]


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")], data: DataFile, split: SplitName = "all", as_json: Json = False
) -> None:
    """Measure a model through the worker's own classifier."""
    from trainer import evaluate as measuring  # scikit-learn is not needed to build

    classifier = Classifier.open(model)
    examples = _queries(data, split, classifier.card.training, classifier.card.labels.names)
    with progress() as bar:
        task = bar.add_task("classifying", total=len(examples))
        decisions = measuring.decide(classifier, examples, lambda done: bar.update(task, completed=done))
    figures = measuring.evaluate(classifier.card, examples, decisions).as_dict()
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=f"{model.name} on {data.name} ({split})", caption=_summary(figures))
    for column in ("label", "n", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, row in figures["per_label"].items():
        table.add_row(escape(label), f"{row['n']:.0f}", f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}")
    out = Console()
    out.print(table)
    for row in figures["confusions"][:10]:
        out.print(f"  {row['count']} x {escape(row['label'])} taken for {escape(row['given'])}")


@app.command()
def baseline(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF, whose base and labels are used, or its directory.")],
    data: DataFile,
    split: SplitName = "all",
    as_json: Json = False,
) -> None:
    """Measure the untuned base, prompted with the label names: free, and constrained to them."""
    from trainer import baseline as measuring

    classifier = Classifier.open(building.model_file_of(model) if model.is_dir() else model)
    card = classifier.card
    classifier.close()
    examples = _queries(data, split, card.training, card.labels.names)
    with progress() as bar:
        task = bar.add_task("asking the untuned base", total=2 * len(examples))
        figures = measuring.baseline(card, Base.path_recorded_in(card.training), examples, lambda done: bar.update(task, completed=done))
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=f"untuned {card.base} on {data.name} ({split}), {figures['n']} queries")
    table.add_column("way of asking")
    for column in ("right", "accuracy", "preamble or explanation", "invented label", "most used label"):
        table.add_column(column, justify="right")
    for way in ("free", "constrained"):
        row = figures[way]
        used = f"{escape(row['most_used']['label'])} {row['most_used']['share']:.0%}"
        table.add_row(way, str(row["right"]), f"{row['accuracy']:.1%}", str(row["preamble"]), str(row["invented"]), used)
    Console().print(table)


@app.command()
def peers(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")],
    data: DataFile,
    split: SplitName = "all",
    train: TrainFiles = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all classify all.")] = 3,
    weight_format: Annotated[
        str | None, typer.Option("--format", help="The weight format that the engine shall have; else the file's.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare with other classifiers, and with the same weights in torch, on these queries and this machine.

    The peers are trained on --train and, with --split test or validation, on the training part of the data.
    """
    from trainer import peers as measuring  # torch and scikit-learn

    _check_formats([weight_format] if weight_format else [], FORMATS)
    metadata = building.read_metadata(building.directory_of(model))
    test = _queries(data, split, metadata["training"])
    taught = learnt_from(train or [], data, split, metadata["training"], test)
    served = in_format(model, weight_format, cache_directory(), content_hash(model)) if weight_format else None
    with progress() as bar:
        task = bar.add_task("comparing", total=None)
        found, peak = measuring.compare(model, taught, test, rounds, lambda what: bar.update(task, description=what), served)
    if as_json:
        print(json.dumps({"train": len(taught), "n": len(test)} | measuring.as_dict(found, peak)))
        return
    table = Table(title=f"{len(test)} queries of {data.name} ({split}); peers trained on {len(taught)}")
    for column in ("", "accuracy", "messages/s", "to the engine"):
        table.add_column(column, justify="right" if column else "left")
    for peer in found:
        accuracy = "other labels" if peer.accuracy is None else f"{peer.accuracy:.1%}"
        table.add_row(peer.name, accuracy, f"{peer.messages_per_s:,.0f}", f"{peer.to_engine:.2f}")
    out = Console()
    out.print(table)
    for name, gflops in peak.gflops.items():
        out.print(f"torch's {name} products at these shapes: {gflops:,.0f} GFLOPS; the engine uses {peak.share[name]:.0%} of that")


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="A model's directory, such as models/household, or a Pointsman GGUF.")],
    data: Annotated[
        Path | None, typer.Option(help="Measure on these queries; without it only what is recorded is shown.", show_default=False)
    ] = None,
    split: SplitName = "all",
    peers: Annotated[bool, typer.Option("--peers", help="Measure a linear classifier and the most frequent label too.")] = False,
    train: TrainFiles = None,
    baseline: Annotated[int, typer.Option(min=0, help="Ask the untuned base too, about so many of the queries.")] = 0,
    formats: Annotated[int, typer.Option(min=0, help="Compare weight formats too, with so many of the queries.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Where to write.", show_default="the model's directory")] = None,
) -> None:
    """Write report.html (one page with plots), card.md (the model card) and report.json (what was measured for them).

    What report.json holds of the same model and queries is shown again and not measured again, unless asked for.
    """
    from trainer import figures  # the training libraries, without torch
    from trainer import report as page

    metadata = figures.read_metadata(model)
    training, version = metadata["training"], metadata["training"]["version"]
    home = model if model.is_dir() else building.directory_of(model)
    directory = output or home
    directory.mkdir(parents=True, exist_ok=True)
    record = figures.read_record(directory, version)
    if data is None and (peers or baseline or formats):
        raise DataError("there is nothing to measure with: give --data FILE")
    if data is not None:
        examples = _queries(data, split, training, [label["name"] for label in metadata["labels"]["labels"]])
        taught = learnt_from(train or [], data, split, training, examples) if peers else []
        base = (Base.path_recorded_in(training), baseline) if baseline else None
        gguf = building.model_file_of(model) if model.is_dir() else model
        record = figures.record_for(examples, data, split, version, record)
        with progress() as bar:
            task = bar.add_task("measuring", total=None)
            found = figures.measure(
                gguf, version, examples, lambda what: bar.update(task, description=what), taught=taught, baseline=base, formats=formats
            )
            for part in found:
                record |= part
                figures.write_record(directory, record)
    for path in page.write(directory, metadata, record, home):
        console.print(f"wrote {path}", soft_wrap=True)


@app.command("parity")
def parity_command(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")],
    data: DataFile,
    split: SplitName = "validation",
    forms: Annotated[list[str] | None, typer.Option("--format", help="A weight format; may be given again. Else all.")] = None,
    as_json: Json = False,
) -> None:
    """Whether the model answers alike in other weight formats. Exit code 3 if not in one of them."""
    from trainer import parity

    _check_formats(forms or (), parity.FORMATS)
    card = building.read_metadata(building.directory_of(model))
    texts = [example.text for example in dataset.part_of(data, split, card["training"])]
    with console.status("comparing") as status:
        found = list(parity.in_formats(model, texts, forms or parity.FORMATS, lambda form: status.update(f"comparing with {form}")))
    limits = Gate.model_validate(card["training"].get("recipe", {}).get("gate", {}))
    complaints = [words for each in found if (words := parity.complaint(each, limits))]
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
            console.print(words, style="red", soft_wrap=True)
    if complaints:
        raise typer.Exit(REFUSED)


def _queries(data: Path, split: str, training: Mapping[str, Any], labels: Iterable[str] | None = None) -> list[Example]:
    """What a model is measured on. Of a part that was held out from training, less what it had learnt before: see `--from`."""
    examples = dataset.part_of(data, split, training, labels)
    if split not in ("validation", "test") or "texts" not in training:
        return examples
    kept = learnt.without_learnt(examples, split, training, lambda line: console.print(line, soft_wrap=True))
    return examples if kept is None else kept


def _check_formats(wanted: Iterable[str], known: Sequence[str]) -> None:
    """Raises DataError unless all are known."""
    if unknown := sorted(set(wanted) - set(known)):
        raise DataError(f"there is no format {', '.join(unknown)}: use {', '.join(known)}")


def learnt_from(
    files: Iterable[Path], data: Path, part: str, training: dict[str, Any], test: Sequence[dataset.Example]
) -> list[dataset.Example]:
    """What peers learn from, as the model did: the files, and where a held-out part is measured the training part too.

    There the files are without what is nearly in `test`. Files beside a test file of its own are taken as they are.
    """
    taught = [example for path in files for example in dataset.load_examples(path)]
    if part in ("test", "validation"):
        taught = dataset.without_copies(taught, of=test) + dataset.part_of(data, "train", training)
    if not taught:
        raise DataError("the peers need something to learn from: give --train FILE, or --split test")
    return taught


def _summary(figures: dict[str, Any]) -> str:
    right = "" if figures["routed_accuracy"] is None else f", the others {figures['routed_accuracy']:.1%} right"
    return (
        f"{figures['n']} queries, accuracy {figures['accuracy']:.4f}, macro-F1 {figures['macro_f1']:.4f}, "
        f"ECE {figures['ece']:.4f}; {figures['reviewed']:.1%} to review{right}"
    )
