"""The command line: python -m trainer (console script pointsman-train)."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from trainer import build as building
from trainer import dataset, lifecycle, measuring, processes, publish
from trainer.base import BaseError
from trainer.build import BuildError
from trainer.dataset import DataError
from trainer.recipe import RecipeError, load_recipe
from trainer.registry import PublishError
from trainer.terminal import DATA_HELP, REFUSED, Json, console, progress, steps
from worker.classifier import ModelFileError

app = typer.Typer(
    help="Train, build and measure Pointsman's router models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (measuring, lifecycle):
    app.add_typer(part.app)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as trainer/recipes/household-smollm2.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Instead of the recipe's data.", show_default=False)] = None,
    validation: Annotated[Path | None, typer.Option(help="Instead of the recipe's validation file.", show_default=False)] = None,
    test: Annotated[Path | None, typer.Option(help="Instead of the recipe's test file.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of the recipe's output directory.", show_default=False)] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A model's directory: train on from it, for a short time, as the recipe's `continuing` says.", show_default=False
        ),
    ] = None,
    answers: Annotated[
        str | None, typer.Option(help="codes, or to compare with: names. Instead of the recipe's.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Publish the model even if the gate refuses it.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Take over nothing from an earlier run.")] = False,
) -> None:
    """Train the model that a recipe describes; publish its GGUF unless it is worse than the present one.

    If the same command was cut off before, it goes on from there. Exit code 3: trained, and not published.
    """
    from trainer import pipeline  # needs the training libraries, which building and splitting do not

    given: dict[str, object] = {
        "data": data,
        "validation": validation,
        "test": test,
        "output": output,
        "start_from": start_from,
        "answers": answers,
    }
    if answers == "names":
        given["codes"] = {}
    loaded = load_recipe(recipe, {name: value for name, value in given.items() if value is not None})
    console.quiet = not processes.is_first()  # of several processes one speaks
    with steps() as tell:
        outcome = pipeline.run(loaded, lambda line: console.print(line, markup=False, soft_wrap=True), tell, force=force, fresh=fresh)
    if outcome is None:
        return
    if not outcome.published:
        console.print(
            f"not published: {publish.candidate_file(loaded.output)} is kept until the next run; to publish it all the same: "
            f"python -m trainer publish {loaded.output}",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(REFUSED)
    part, figures = list(outcome.metadata["evaluation"].items())[-1]
    console.print(f"[bold]{building.model_file_of(loaded.output)}[/]: {part} accuracy {figures['accuracy']:.4f} of {figures['n']}")


@app.command()
def inspect(
    data: Annotated[Path, typer.Argument(help=DATA_HELP)],
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
    with progress() as bar:
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
    with progress() as bar:
        task = bar.add_task("merging base and adapter")
        publish.build_model(model, lambda done, total: bar.update(task, completed=done, total=total))
    console.print(f"built {output}, {output.stat().st_size / 1e6:.0f} MB, version {publish.version_in_place(model)}")


@app.command("split")
def split_command(
    data: Annotated[Path, typer.Argument(help="A data file.")],
    model: Annotated[Path, typer.Option(help="The model's directory, whose metadata says how the data is split.")],
    part: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
) -> None:
    """Print one part of a data file as JSON lines of {"text", "label"}: the split that a model was trained by."""
    for example in dataset.part_of(data, part, building.read_metadata(model)["training"]):
        print(json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False))


def main() -> None:
    """Run the command line; a known error becomes one clear line and exit code 1."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would run into ours; read when tqdm is imported
    warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")  # the base is a GGUF, which has none
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of names that trl and peft still use
    try:
        app()
    except (RecipeError, BaseError, DataError, BuildError, PublishError, ModelFileError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("trainer", "worker"):
            raise
        _fail(f"{error.name} is not installed: `make setup` installs the trainer's libraries (pip: the extra `train`)")


def _fail(why: str) -> NoReturn:
    console.print(f"error: {why}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)
