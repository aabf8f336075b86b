"""The command line: python -m trainer (console script pointsman-train)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trainer import build as building
from trainer import dataset, lifecycle, publish
from trainer.build import BuildError
from trainer.dataset import DataError
from trainer.recipe import Base, RecipeError, load_recipe
from trainer.registry import PublishError
from worker.classifier import Classifier, ModelFileError

app = typer.Typer(
    help="Train, build and measure Pointsman's router models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lifecycle.app)
console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
_DATA = "A JSON array or JSONL of {instruction, input, output}, CSV text,label, or hf:OWNER/NAME[@REVISION][:SPLIT]."
DataFile = Annotated[Path, typer.Option(help=_DATA)]
SplitName = Annotated[
    str, typer.Option(help="all, or train, validation or test: the part of the data in the split that the model was trained by.")
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as trainer/recipes/household-smollm2.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Instead of the recipe's data.", show_default=False)] = None,
    validation: Annotated[Path | None, typer.Option(help="Instead of the recipe's validation file.", show_default=False)] = None,
    test: Annotated[Path | None, typer.Option(help="Instead of the recipe's test file.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of the recipe's output directory.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Publish the model even if the gate refuses it.")] = False,
) -> None:
    """Train the model that a recipe describes; publish its GGUF unless it is worse than the present one.

    Exit code 3: trained, and not published.
    """
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

        outcome = pipeline.run(loaded, lambda line: console.print(line, markup=False, soft_wrap=True), step, force=force)
    if not outcome.published:
        console.print(
            f"not published: {publish.candidate_file(loaded.output)} is kept until the next run; to publish it all the same: "
            f"python -m trainer publish {loaded.output}",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(lifecycle.REFUSED)
    part, figures = list(outcome.metadata["evaluation"].items())[-1]
    console.print(f"[bold]{building.model_file_of(loaded.output)}[/]: {part} accuracy {figures['accuracy']:.4f} of {figures['n']}")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(help=_DATA)],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Data that must hold none of it, such as the test file; may be given again.", show_default=False),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="Write the data here (.json, .jsonl, .csv) without copies, contradictions and what --against holds.", show_default=False
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A GGUF whose tokens are counted, instead of the household recipe's base.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at data before training: balance, copies, contradictions, leaks, lengths, labels that may be wrong."""
    from trainer import inspection, inspection_report  # scikit-learn is not needed to build

    recipe = load_recipe(Path(__file__).with_name("recipes") / "household-smollm2.yaml")
    against = against or []
    if clean is not None:
        dataset.check_target(clean, [data, *against])
    rows, others = dataset.load_rows(data), {str(path): dataset.load_rows(path) for path in against}
    with _progress("inspecting") as bar:
        task = bar.add_task("inspecting", total=len(inspection.STEPS))

        def step(what: str) -> None:
            bar.update(task, description=what, completed=inspection.STEPS.index(what))

        found = inspection.inspect(rows, others, model or recipe.base.path(), recipe.training.max_query_tokens, step)
    kept, dropped = inspection.clean(rows, found.copies)
    if clean is not None:
        dataset.write_rows(kept, clean)
    if as_json:
        print(json.dumps(found.as_dict() | ({"dropped": [asdict(row) for row in dropped]} if clean is not None else {})))
        return
    out = Console()
    inspection_report.show(out, str(data), found)
    if clean is not None:
        inspection_report.show_dropped(out, str(clean), len(kept), dropped)


@app.command()
def build(model: Annotated[Path, typer.Argument(help="A model's directory, such as models/household.")]) -> None:
    """Merge base, adapter and metadata into a GGUF beside the directory. Takes seconds, needs no torch."""
    output = building.model_file_of(model)
    with _progress("merging") as bar:
        task = bar.add_task("merging base and adapter")
        publish.build_model(model, lambda done, total: bar.update(task, completed=done, total=total))
    console.print(f"built {output}, {output.stat().st_size / 1e6:.0f} MB, version {publish.version_in_place(model)}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A Pointsman GGUF.")], data: DataFile, split: SplitName = "all", as_json: Json = False
) -> None:
    """Measure a model through the worker's own classifier."""
    from trainer import evaluate as measuring  # scikit-learn is not needed to build

    classifier = Classifier.open(model)
    examples = dataset.part_of(data, split, dict(classifier.card.training))
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
    examples = dataset.part_of(data, split, dict(card.training))
    dataset.check_labels(examples, card.labels.names)
    with _progress("asking") as bar:
        task = bar.add_task("asking the untuned base", total=2 * len(examples))
        figures = measuring.baseline(card, Base.recorded_in(card.training).path(), examples, lambda: bar.advance(task))
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
    train: Annotated[list[Path] | None, typer.Option(help="What to train the peers on; may be given again.", show_default=False)] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all classify all.")] = 3,
    as_json: Json = False,
) -> None:
    """Compare with other classifiers, and with the same weights in torch, on these queries and this machine.

    The peers are trained on --train and, with --split test or validation, on the training part of the data.
    """
    from trainer import peers as measuring  # torch and scikit-learn

    metadata = building.read_metadata(building.directory_of(model))
    taught = [example for path in train or [] for example in dataset.load_examples(path)]
    if split in ("test", "validation"):
        taught += dataset.part_of(data, "train", metadata["training"])
    if not taught:
        raise DataError("the peers need something to learn from: give --train FILE, or --split test")
    test = dataset.part_of(data, split, metadata["training"])
    taught = dataset.without_copies(taught, of=test)
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


@app.command("split")
def split_command(
    data: Annotated[Path, typer.Argument(help="A data file.")],
    model: Annotated[Path, typer.Option(help="The model's directory, whose metadata says how the data is split.")],
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
) -> None:
    """Print one part of a data file as JSON lines of {"text", "label"}: the split that a model was trained by."""
    for example in dataset.part_of(data, part, building.read_metadata(model)["training"]):
        print(json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False))


def _summary(figures: dict[str, Any]) -> str:
    return (
        f"{figures['n']} queries, accuracy {figures['accuracy']:.4f}, macro-F1 {figures['macro_f1']:.4f}, "
        f"ECE {figures['ece']:.4f}; {figures['reviewed']:.1%} to review, the others {figures['routed_accuracy']:.1%} right"
    )


def _progress(what: str) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=not console.is_terminal, disable=not console.is_terminal and what != "training")


def main() -> None:
    """Run the command line; a known error becomes one clear line and exit code 1."""
    try:
        app()
    except (RecipeError, DataError, BuildError, PublishError, ModelFileError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
