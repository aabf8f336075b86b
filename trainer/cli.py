"""The command line: python -m trainer (console script pointsman-train)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trainer import build as building
from trainer import dataset
from trainer.build import BuildError
from trainer.dataset import DataError
from trainer.recipe import RecipeError, load_recipe
from worker.classifier import Classifier, ModelFileError

app = typer.Typer(
    help="Train, build and measure Pointsman's router models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
DataFile = Annotated[Path, typer.Option(help="A JSON array or JSONL of {instruction, input, output}, or CSV text,label.")]
SplitName = Annotated[
    str, typer.Option(help="all, or train, validation or test: the part of the data in the split that the model was trained by.")
]

TrainFiles = Annotated[
    list[Path] | None, typer.Option("--train", help="What to train the peers on; may be given again.", show_default=False)
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as trainer/recipes/household-smollm2.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Instead of the recipe's data.", show_default=False)] = None,
    validation: Annotated[Path | None, typer.Option(help="Instead of the recipe's validation file.", show_default=False)] = None,
    test: Annotated[Path | None, typer.Option(help="Instead of the recipe's test file.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of the recipe's output directory.", show_default=False)] = None,
) -> None:
    """Train the model that a recipe describes and build its GGUF."""
    from trainer import pipeline  # needs the training libraries, which building and splitting do not

    given = {"data": data, "validation": validation, "test": test, "output": output}
    loaded = load_recipe(recipe, {name: path for name, path in given.items() if path is not None})
    with _progress("training") as bar:
        task = bar.add_task("training", total=None)

        def step(done: int, total: int, loss: float | None) -> None:
            shown = "training" if loss is None else f"training, loss {loss:.3f}"
            bar.update(task, completed=done, total=total, description=shown)
            if not console.is_terminal and done % max(1, total // 10) == 0:
                console.print(f"{shown}, step {done} of {total}")

        metadata = pipeline.run(loaded, console.print, step)
    part, figures = list(metadata["evaluation"].items())[-1]
    console.print(f"[bold]{building.model_file_of(loaded.output)}[/]: {part} accuracy {figures['accuracy']:.4f} of {figures['n']}")


@app.command()
def build(model: Annotated[Path, typer.Argument(help="A model's directory, such as models/household.")]) -> None:
    """Merge base, adapter and metadata into a GGUF beside the directory. Takes seconds, needs no torch."""
    metadata = building.read_metadata(model)
    base = _base_of(metadata)
    output = building.model_file_of(model)
    with _progress("merging") as bar:
        task = bar.add_task(f"merging {base.name} and the adapter")
        building.build(
            base,
            building.read_adapter(model / building.ADAPTER_FILE),
            metadata,
            output,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"built {output}, {output.stat().st_size / 1e6:.0f} MB, version {metadata['training']['version']}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")], data: DataFile, split: SplitName = "all", as_json: Json = False
) -> None:
    """Measure a model through the worker's own classifier."""
    from trainer import evaluate as measuring  # scikit-learn is not needed to build

    classifier = Classifier.open(model)
    examples = _examples(data, split, dict(classifier.card.training))
    dataset.check_labels(examples, classifier.card.labels.names)
    with _progress("classifying") as bar:
        task = bar.add_task("classifying", total=len(examples))
        decisions = measuring.decide(classifier, examples, lambda done: bar.update(task, completed=done))
    figures = measuring.evaluate(classifier, examples, decisions).as_dict()
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=f"{model.name} on {data.name} ({split})", caption=_summary(figures))
    for column in ("label", "n", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, row in figures["per_label"].items():
        table.add_row(label, f"{row['n']:.0f}", f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}")
    out = Console()
    out.print(table)
    for row in figures["confusions"][:10]:
        out.print(f"  {row['count']} x {row['label']} taken for {row['given']}")


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
    examples = _examples(data, split, dict(card.training))
    dataset.check_labels(examples, card.labels.names)
    with _progress("asking") as bar:
        task = bar.add_task("asking the untuned base", total=2 * len(examples))
        figures = measuring.baseline(card, _base_of({"training": card.training}), examples, lambda: bar.advance(task))
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=f"untuned {card.base} on {data.name} ({split}), {figures['n']} queries")
    table.add_column("way of asking")
    for column in ("right", "accuracy", "preamble or explanation", "invented label", "most used label"):
        table.add_column(column, justify="right")
    for way in ("free", "constrained"):
        row = figures[way]
        used = f"{row['most_used']['label']} {row['most_used']['share']:.0%}"
        table.add_row(way, str(row["right"]), f"{row['accuracy']:.1%}", str(row["preamble"]), str(row["invented"]), used)
    Console().print(table)


@app.command()
def peers(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")],
    data: DataFile,
    split: SplitName = "all",
    train: TrainFiles = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all classify all.")] = 3,
    as_json: Json = False,
) -> None:
    """Compare with other classifiers, and with the same weights in torch, on these queries and this machine.

    The peers are trained on --train and, with --split test or validation, on the training part of the data.
    """
    from trainer import peers as measuring  # torch and scikit-learn

    metadata = building.read_metadata(building.directory_of(model))
    test = _examples(data, split, metadata["training"])
    taught = _taught(train or [], data, split, metadata["training"], test)
    with _progress("comparing") as bar:
        task = bar.add_task("comparing", total=None)
        found, peak = measuring.compare(model, taught, test, rounds, lambda what: bar.update(task, description=what))
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
    from trainer import card, figures  # the training libraries, without torch
    from trainer import report as page

    metadata = figures.read_metadata(model)
    training, version = metadata["training"], metadata["training"]["version"]
    directory = output or (model if model.is_dir() else building.directory_of(model))
    directory.mkdir(parents=True, exist_ok=True)
    record = figures.read_record(directory, version)
    if data is None and (peers or baseline or formats):
        raise DataError("there is nothing to measure with: give --data FILE")
    if data is not None:
        examples = _examples(data, split, training)
        dataset.check_labels(examples, [label["name"] for label in metadata["labels"]["labels"]])
        taught = _taught(train or [], data, split, training, examples) if peers else []
        base = (_base_of(metadata), baseline) if baseline else None
        gguf = building.model_file_of(model) if model.is_dir() else model
        record = figures.record_for(examples, data, split, version, record)
        with _progress("measuring") as bar:
            task = bar.add_task("measuring", total=None)
            found = figures.measure(
                gguf, version, examples, lambda what: bar.update(task, description=what), taught=taught, baseline=base, formats=formats
            )
            for part in found:
                record |= part
                figures.write_record(directory, record)
    for name, text in ((page.REPORT_FILE, page.render(metadata, record)), (card.CARD_FILE, card.render(metadata, record))):
        (directory / name).write_text(text, encoding="utf-8")
        console.print(f"wrote {directory / name}", soft_wrap=True)


@app.command("split")
def split_command(
    data: Annotated[Path, typer.Argument(help="A data file.")],
    model: Annotated[Path, typer.Option(help="The model's directory, whose metadata says how the data is split.")],
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
) -> None:
    """Print one part of a data file as JSON lines of {"text", "label"}: the split that a model was trained by."""
    for example in _examples(data, part, building.read_metadata(model)["training"]):
        print(json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False))


def _examples(data: Path, part: str, training: dict[str, Any]) -> list[dataset.Example]:
    examples = dataset.load_examples(data)
    if part == "all":
        return examples
    for known in dataset.PARTS:
        if part == known:
            return dataset.split(examples, **training["recipe"]["split"])[known]
    raise DataError(f"there is no split {part!r}: use all, train, validation or test")


def _taught(
    files: Iterable[Path], data: Path, part: str, training: dict[str, Any], test: Sequence[dataset.Example]
) -> list[dataset.Example]:
    """What peers learn from: the files, and the training part where a held-out part is measured; nothing that is nearly in `test`."""
    taught = [example for path in files for example in dataset.load_examples(path)]
    if part in ("test", "validation"):
        taught += _examples(data, "train", training)
    if not taught:
        raise DataError("the peers need something to learn from: give --train FILE, or --split test")
    return dataset.without_copies(taught, of=test)


def _base_of(metadata: dict[str, Any]) -> Path:
    from trainer.recipe import Base

    training = metadata["training"]
    return Base(
        name=training["base"],
        licence=training["base_licence"],
        package=training["base_package"],
        file=training["base_file"],
    ).path()


def _summary(figures: dict[str, Any]) -> str:
    return (
        f"{figures['n']} queries, accuracy {figures['accuracy']:.4f}, macro-F1 {figures['macro_f1']:.4f}, "
        f"ECE {figures['ece']:.4f}; {figures['reviewed']:.1%} to review, the others {figures['routed_accuracy']:.1%} right"
    )


def _progress(what: str) -> Progress:
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    return Progress(*columns, console=console, transient=not console.is_terminal, disable=not console.is_terminal and what != "training")


def main() -> None:
    """Run the command line; a known error becomes one clear line and exit code 1."""
    try:
        app()
    except (RecipeError, DataError, BuildError, ModelFileError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
