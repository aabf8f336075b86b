from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.dataset import load_examples
from trainer.recipe import RecipeError, load_recipe, with_labels_of

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "trainer" / "recipes").glob("*.yaml"))
LEAST: dict[str, Any] = {
    "name": "tiny",
    "base": {"name": "b", "licence": "MIT", "package": "p", "file": "f.gguf"},
    "data": "data.json",
    "output": "out",
    "labels": {"pool": "water", "car": "wheels"},
    "prompt": {"prefix": "", "suffix": "\n"},
    "split": {"seed": 1},
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST | changes))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value)


def test_what_a_recipe_leaves_out_has_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    assert (recipe.split.validation, recipe.split.test, recipe.out_of_scope) == (0.15, 0.15, None)
    assert recipe.training.epochs >= 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": {"pool": ""}}, "at least two"),
        ({"out_of_scope": "nowhere"}, "'nowhere' is not one of the labels"),
        ({"epochs": 3}, "epochs: Extra inputs"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat: Extra inputs"),
        ({"split": {"seed": 1, "test": 0.5}}, "split.test"),
        ({"split": {}}, "split.seed: Field required"),
        ({"labels": {True: "yes", "car": ""}}, "Input should be a valid string"),
        ({"review": {"precision": 1}}, "review.precision"),
        ({"review": {"confidence": 0.3}}, "review.confidence"),
        ({"answers": "names", "codes": {"pool": " pool"}}, "codes: none are used where answers is names"),
        ({"answers": "letters"}, "answers: Input should be 'codes' or 'names'"),
        ({"gate": {"alpha": 0}}, "gate.alpha"),
        ({"train_only": 5}, "train_only"),
        ({"test": "test.json"}, "split.test: must be 0, since test names a file"),
        ({"validation": "held.json"}, "split.validation: must be 0, since validation names a file"),
        ({"split": {"seed": 1, "validation": 0}}, "split.validation: may be 0 only where"),
        ({"data": "hf:banking77"}, "data: Value error, hf:banking77 names no data set of the Hugging Face hub: write hf:OWNER/NAME"),
        ({"prompt": {"prefix": "", "suffix": "<think>\n"}}, "prompt: Value error, the prompt opens a <think> block and does not close it"),
        ({"base": {"name": "b", "licence": "MIT"}}, "base: Value error, name either package and file, or source"),
        ({"base": {"name": "b", "licence": "MIT", "package": "p"}}, "base: Value error, name either package and file, or source"),
        ({"base": {"name": "b", "licence": "MIT", "source": "hf:b"}}, "base.source: Value error, hf:b names no model"),
        ({"base": {"name": "b", "licence": "MIT", "source": "hf:a/b:c.bin"}}, "base.source: Value error, c.bin is no GGUF"),
        ({"prompt": {"prefix": "", "suffix": ""}}, "prompt.suffix: String should have at least 1 character"),
        ({"repeat": {"boat": 2}}, "repeat: 'boat' are not among the labels"),
        ({"repeat": {"pool": 0}}, "repeat.pool: "),
        ({"labels": {"pool": "", "Pool": ""}, "codes": {}}, "'Pool' and 'pool' would both be published to the topic 'pool'"),
        ({"train_only": "hf:a/b:"}, "train_only.0: Value error, hf:a/b: names no data set"),
    ],
)
def test_a_wrong_or_unknown_value_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    assert what in complaint(written(tmp_path, **changes))


def test_several_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = complaint(written(tmp_path, name=5, training={"epochs": 0}, typo=1))
    assert "3 problem(s)" in text
    assert [place for place in ("name", "training.epochs", "typo") if f"\n  {place}: " not in text] == []


def test_values_that_do_not_fit_together_are_reported_at_once_too(tmp_path: Path) -> None:
    labels = {"pool": "", "Pool": "", "car": ""}
    text = complaint(written(tmp_path, labels=labels, out_of_scope="other", codes={"boat": " X"}, repeat={"sea": 2}, test="test.csv"))
    assert "5 problem(s)" in text
    for place in ("labels", "out_of_scope", "codes", "repeat", "split.test"):
        assert f"\n  {place}: " in text


@pytest.mark.parametrize(
    ("content", "what"), [(b"a: [", "is not YAML"), (b"\xff\xfe\xff", "is not YAML"), (b"", "recipe: "), (b"- 1", "recipe: ")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert what in complaint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.yaml" in complaint(tmp_path / "none.yaml")


def test_a_recipe_says_what_its_examples_come_from_and_not_where_that_lies(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, data=str(tmp_path / "mine.json"), train_only=["hf:a/b@c:d", "of/mine/more.csv"]))
    assert recipe.files() == {"data": ["mine.json"], "train_only": ["hf:a/b@c:d", "more.csv"]}


def test_a_model_without_a_name_is_named_after_its_output(tmp_path: Path) -> None:
    path = written(tmp_path, output="models/helpdesk")
    path.write_text(path.read_text().replace("name: tiny\n", ""))
    assert load_recipe(path).name == "helpdesk"
    assert load_recipe(path, {"output": Path("elsewhere/mine")}).name == "mine"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_a_shipped_recipe_trains_on_of_this_repository_is_there(path: Path) -> None:
    recipe = load_recipe(path)
    for source in recipe.train_only:
        rows = load_examples(ROOT / source)
        assert len(rows) >= 100
        assert {row.label for row in rows} <= {*recipe.labels, recipe.out_of_scope}


def test_there_are_recipes_to_check() -> None:
    assert "household-smollm2" in [path.stem for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).name in path.stem


def test_values_given_on_the_command_line_take_the_place_of_the_files(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path), {"data": Path("mine.csv")}).data == Path("mine.csv")


def test_a_data_set_of_the_hub_stands_where_a_file_does(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, data="hf:a/b@v1", test="hf:a/b@v1:test", split={"seed": 1, "test": 0}))
    assert (str(recipe.data), str(recipe.test)) == ("hf:a/b@v1", "hf:a/b@v1:test")


@pytest.mark.parametrize(("value", "files"), [("more.json", ["more.json"]), (["a.json", "b.csv"], ["a.json", "b.csv"]), ([], [])])
def test_train_only_names_one_file_or_several(tmp_path: Path, value: object, files: list[str]) -> None:
    assert load_recipe(written(tmp_path, train_only=value)).train_only == tuple(map(Path, files))


def test_a_model_to_start_from_takes_the_short_schedule(tmp_path: Path) -> None:
    training, continuing = {"epochs": 7, "learning_rate": 0.1, "lora_rank": 8}, {"learning_rate": 0.01}
    recipe = load_recipe(written(tmp_path, training=training, continuing=continuing))
    assert recipe.schedule() == recipe.training
    onward = load_recipe(tmp_path / "recipe.yaml", {"start_from": Path("models/mine")}).schedule()
    assert (onward.epochs, onward.evaluations_per_epoch, onward.learning_rate, onward.lora_rank) == (1, 1, 0.01, 8)


def test_labels_left_out_are_those_of_the_data(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, labels={}, out_of_scope="else"))
    assert list(with_labels_of(recipe, ["pool", "else", "car", "pool"]).labels) == ["car", "else", "pool"]
    with pytest.raises(RecipeError, match="'else' is not one of the labels"):
        with_labels_of(recipe, ["pool", "car"])
    with pytest.raises(RecipeError, match="at least two"):
        with_labels_of(load_recipe(written(tmp_path, labels={})), ["pool", "pool"])


def test_labels_that_a_recipe_lists_are_kept(tmp_path: Path) -> None:
    assert set(with_labels_of(load_recipe(written(tmp_path)), ["boat"]).labels) == {"pool", "car"}


@pytest.mark.parametrize("name", ["household-smollm2", "household-qwen3-0.6b"])
def test_a_household_recipe_has_exactly_the_labels_of_its_data(name: str) -> None:
    recipe = load_recipe(ROOT / f"trainer/recipes/{name}.yaml")
    assert set(recipe.labels) == {example.label for example in load_examples(ROOT / recipe.data)}
