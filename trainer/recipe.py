"""A recipe: everything that a training run depends on, in one checked YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trainer import hub
from trainer.base import Base
from trainer.dataset import DataError
from worker.classifier.labels import check_names


class RecipeError(Exception):
    """A recipe that cannot be used; the message lists every problem."""


class _UnfitError(ValueError):
    """Values that are right by themselves, and not together."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _source(path: Path) -> Path:
    if hub.is_hub_id(path):
        try:
            hub.parse_hub_id(path)
        except DataError as error:
            raise ValueError(error) from error
    return path


Source = Annotated[Path, AfterValidator(_source)]
"""A data file, or hf:OWNER/NAME[@REVISION][:SPLIT] for a data set of the Hugging Face hub."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Section = TypeVar("Section", bound=_Section)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


def thinks_on(text: str) -> bool:
    """Whether a thinking model would go on thinking: the text ends within a block of thoughts."""
    return text.rfind("<think>") > text.rfind("</think>")


class PromptText(_Section):
    prefix: str
    suffix: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _thoughts_are_closed(self) -> PromptText:
        if thinks_on(self.prefix + self.suffix):
            raise ValueError("the prompt opens a <think> block and does not close it: a code can only come after the thoughts")
        return self


class Split(_Section):
    """Shares of the data held out; the rest is trained on. 0 for a part that has a file of its own."""

    seed: int
    validation: Annotated[float, Field(ge=0, lt=0.5)] = 0.15
    test: Annotated[float, Field(ge=0, lt=0.5)] = 0.15


class Training(_Section):
    """Hyper-parameters of the LoRA fine-tuning."""

    seed: int = 0
    epochs: Annotated[int, Field(ge=1)] = 6
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_rank: Annotated[int, Field(ge=1)] = 16
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each query's tokens that the rest does not see in a step, so that no single word decides."""
    max_query_tokens: Annotated[int, Field(ge=1)] = 128
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 2
    """How often the validation split is answered, and the weights are looked at."""
    patience: Annotated[int, Field(ge=0)] = 4
    """Training ends after so many evaluations without a better one; 0: never."""
    average_last: Annotated[int, Field(ge=0)] = 3
    """The mean of the weights at so many last evaluations is tried too; below 2: no mean."""


class Continuing(_Section):
    """How a model is trained on that is trained already (`start_from`): shortly, and gently."""

    examples: Annotated[int, Field(ge=1)] = 6400
    """How many are trained on. Small files are taken whole, so corrections are among them; of larger ones as many as there is room for."""
    epochs: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 1
    """The weights that training began with are looked at besides, and the mean of both."""


class Review(_Section):
    """How the confidence thresholds are chosen on the validation split; below its label's threshold a query goes to review."""

    precision: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """Share of the routed queries that must be right."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """How sure that must be of queries to come: with it the thresholds are those that can be guaranteed, by label where a label has enough
    queries. Left out: one threshold, by estimate."""
    out_of_scope_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the queries to come that belong to no label, where that is not the validation split's."""

    @model_validator(mode="after")
    def _is_of_queries_like_these(self) -> Review:
        if self.confidence is not None and self.out_of_scope_share is not None:
            raise ValueError(
                "confidence: a guarantee is of queries drawn like those calibrated on, so there is none with out_of_scope_share"
            )
        return self


class Gate(_Section):
    """What a new model must hold to on the test split to take the place of the published one."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of the paired test that the new model is worse."""
    accuracy_drop: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The most that accuracy may fall."""
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The most that the recall of a label may fall, unless that may be chance."""
    least_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """For the first model too."""
    least_agreement: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Share of the validation split to which the trained network and its GGUF must give the same label."""
    most_difference: Annotated[float, Field(ge=0, le=1)] = 0.05
    """How far the probability of a label may differ between them: of each query the largest difference, on average."""


class Recipe(_Section):
    """One model, from data to GGUF."""

    name: str
    """Left out: that of the output directory."""
    base: Base
    data: Source
    train_only: Annotated[tuple[Source, ...], BeforeValidator(_one_or_more)] = ()
    """Files of further examples to train on, never to measure with: generated ones, corrections, or harder ones than users send."""
    validation: Source | None = None
    """Examples to choose and calibrate by, where they are not cut from `data`."""
    test: Source | None = None
    """Examples for the final figure, where they are not cut from `data`: a public data set's official test file."""
    output: Path
    labels: dict[str, str] = {}
    """Name -> what it covers. Left out: the labels of the data, in alphabetical order."""
    answers: Literal["codes", "names"] = "codes"
    """Whether the model answers with one token for each label, or, to compare with, with the label's name, which may take several."""
    codes: dict[str, str] = {}
    """Name -> the single token that the model answers with; labels left out get a word of their name, or a letter."""
    out_of_scope: str | None = None
    repeat: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Name -> how often its examples of `data` are seen in an epoch, where a label has far fewer of them than queries will; else once."""
    prompt: PromptText
    split: Split
    training: Training = Training()
    start_from: Path | None = None
    """A model's directory: training goes on from its adapter, as `continuing` says, instead of beginning with the base."""
    continuing: Continuing = Continuing()
    review: Review = Review()
    gate: Gate = Gate()

    def schedule(self) -> Training:
        """The hyper-parameters that hold: those of `continuing` take the place of the others where there is a model to start from."""
        if self.start_from is None:
            return self.training
        return self.training.model_copy(update=self.continuing.model_dump(exclude={"examples"}))

    def files(self) -> dict[str, list[str]]:
        """What the examples come from, by their part in the recipe: names of files without directories, or of data sets of the hub."""
        found = {"data": [self.data], "train_only": self.train_only, "validation": [self.validation], "test": [self.test]}
        named = {
            part: [str(source) if hub.is_hub_id(source) else source.name for source in sources if source] for part, sources in found.items()
        }
        return {part: names for part, names in named.items() if names}

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_output(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("output"), str | Path):
            return {"name": Path(values["output"]).name} | values
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if problems := [*self._of_labels(), *self._of_parts()]:
            raise _UnfitError(problems)
        return self

    def _of_labels(self) -> Iterator[str]:
        """What is wrong with the labels, and with what is said of them."""
        if self.answers == "names" and self.codes:
            yield "codes: none are used where answers is names"
        if self.review.out_of_scope_share is not None and self.out_of_scope is None:
            yield "review.out_of_scope_share: out_of_scope names no label"
        if not self.labels:
            return
        if len(self.labels) < 2:
            yield "labels: at least two are needed"
        try:
            check_names(self.labels)
        except ValueError as error:
            yield f"labels: {error}"
        if self.out_of_scope is not None and self.out_of_scope not in self.labels:
            yield f"out_of_scope: {self.out_of_scope!r} is not one of the labels"
        for what, named in (("codes", self.codes), ("repeat", self.repeat)):
            if strangers := sorted(set(named) - set(self.labels)):
                yield f"{what}: {', '.join(map(repr, strangers))} are not among the labels"

    def _of_parts(self) -> Iterator[str]:
        """What is wrong with where the parts come from: each from one place."""
        for part, share in (("validation", self.split.validation), ("test", self.split.test)):
            if getattr(self, part) is not None and share:
                yield f"split.{part}: must be 0, since {part} names a file of its own"
        if self.validation is None and not self.split.validation:
            yield "split.validation: may be 0 only where validation names a file"


def load_recipe(path: Path, changes: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe; its relative paths count from the working directory.

    Args:
        changes: top-level values to take instead of the file's.

    Raises:
        RecipeError: the file is missing, is no YAML, or has any wrong or unknown value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    return _checked(Recipe, values | dict(changes or {}) if isinstance(values, dict) else values, str(path))


def with_labels_of(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe itself if it lists labels, else with those of its data.

    Raises:
        RecipeError: out_of_scope or a code belongs to none of them, or there is only one.
    """
    if recipe.labels:
        return recipe
    values = recipe.model_dump() | {"labels": dict.fromkeys(sorted(set(names)), "")}
    return _checked(Recipe, values, f"the recipe {recipe.name}, with the labels of its data,")


def review_of(**values: float | None) -> Review:
    """Raises RecipeError unless they are in range and fit together."""
    return _checked(Review, values, "what is asked for")


def _checked(section: type[Section], values: object, where: str) -> Section:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [problem for each in error.errors() for problem in _problems(each)]
        raise RecipeError(f"{where} has {len(problems)} problem(s):\n" + "\n".join(f"  {problem}" for problem in problems)) from error


def _problems(error: ErrorDetails) -> Sequence[str]:
    cause = error.get("ctx", {}).get("error")
    return cause.problems if isinstance(cause, _UnfitError) else [f"{'.'.join(map(str, error['loc'])) or 'recipe'}: {error['msg']}"]
