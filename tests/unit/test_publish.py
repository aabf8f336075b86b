"""Publishing and going back, on stand-ins for GGUF and adapter: small files that name their version."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from trainer import build, publish, registry
from trainer.cli import app
from trainer.registry import Judgement, PublishError

PASSED = Judgement(passed=True, reasons=("as good",))


def write_pair(directory: Path, word: str) -> str:
    """Adapter and metadata of a made-up model. Returns its version."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / build.ADAPTER_FILE).write_bytes(f"adapter {word}".encode())
    metadata: dict[str, Any] = {
        "labels": {"labels": [{"name": word, "code": "A"}, {"name": "car", "code": "B"}], "out_of_scope": None},
        "prompt": {"prefix": "<s>", "suffix": " Topic"},
        "calibration": {"temperature": 1.0},
        "evaluation": {"test": {"accuracy": 0.9}},
    }
    version = build.content_version(directory / build.ADAPTER_FILE, metadata)
    metadata["training"] = {"name": "made-up", "version": version, "data_sha256": {"test": "12"}}
    (directory / build.METADATA_FILE).write_text(json.dumps(metadata))
    return version


def make(source: Path, output: Path) -> None:
    """In the place of building from a base: a GGUF that names the version of its directory."""
    output.write_bytes(b"GGUF " + str(publish.version_in_place(source)).encode())


def train(model: Path, word: str) -> str:
    """What training leaves: a candidate. Returns its version."""
    version = write_pair(model / publish.CANDIDATE, word)
    make(model / publish.CANDIDATE, publish.candidate_file(model))
    return version


def publish_candidate(model: Path) -> registry.Version:
    return publish.publish(model, PASSED, check=lambda _: None)


def roll_back(model: Path, to: str | None = None) -> registry.Version:
    return publish.rollback(model, to, make=make, check=lambda _: None)


def served(model: Path) -> str:
    """The version of the GGUF, which is whole."""
    magic, version = build.model_file_of(model).read_text().split()
    assert magic == "GGUF"
    assert len(version) == 12
    return version


def assert_in_place(model: Path, version: str) -> None:
    metadata = build.read_metadata(model)
    assert metadata["training"]["version"] == version
    assert build.content_version(model / build.ADAPTER_FILE, metadata) == version
    assert served(model) == version
    assert json.dumps([row["code"] for row in metadata["labels"]["labels"]]) == '["A", "B"]'
    assert (model / "labels.gbnf").read_text() == 'root ::= "A" | "B"\n'
    assert "FROM ../made-up.gguf\n" in (model / "Modelfile").read_text()
    assert not [path for path in model.parent.rglob("*") if path.name.endswith(".partial")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "models" / "made-up"


def test_the_first_model_is_published_and_registered(model: Path) -> None:
    version = train(model, "pool")
    entry = publish_candidate(model)
    assert_in_place(model, version)
    assert registry.versions(model) == [entry]
    assert (entry.version, entry.replaced, entry.accuracy, entry.gate) == (version, None, 0.9, PASSED)
    assert entry.data_sha256 == {"test": "12"}
    assert not (model / publish.CANDIDATE).exists()


def test_versions_come_back_one_by_one(model: Path) -> None:
    names = []
    for word in ("pool", "spa", "tub"):
        names.append(train(model, word))
        publish_candidate(model)
    assert [entry.replaced for entry in registry.versions(model)] == [None, *names[:2]]
    for version in (names[1], names[0]):
        assert roll_back(model).version == version
        assert_in_place(model, version)
    with pytest.raises(PublishError, match="replaced no other version"):
        roll_back(model)
    assert roll_back(model, names[2]).version == names[2]
    assert_in_place(model, names[2])
    assert [entry.version for entry in registry.versions(model)] == names


def test_after_going_back_the_next_model_replaces_what_was_gone_back_to(model: Path) -> None:
    first = train(model, "pool")
    publish_candidate(model)
    train(model, "spa")
    publish_candidate(model)
    roll_back(model)
    train(model, "tub")
    assert publish_candidate(model).replaced == first


def test_a_model_that_is_older_than_the_registry_is_kept_and_can_come_back(model: Path) -> None:
    old = write_pair(model, "pool")
    make(model, build.model_file_of(model))
    train(model, "spa")
    publish_candidate(model)
    before, _ = registry.versions(model)
    assert (before.version, before.gate) == (old, None)
    assert roll_back(model).version == old
    assert_in_place(model, old)


def test_versions_are_listed_with_the_one_in_place(model: Path) -> None:
    assert "nothing is in place" in CliRunner().invoke(app, ["versions", str(model)]).output
    old = train(model, "pool")
    publish_candidate(model)
    new = train(model, "spa")
    publish.publish(model, Judgement(passed=False, reasons=("worse",)), check=lambda _: None)
    lines = CliRunner().invoke(app, ["versions", str(model)]).output.splitlines()
    (first,) = [line for line in lines if line.startswith(f"│ {old} ")]
    (second,) = [line for line in lines if line.startswith(f"│ {new} *")]
    assert "passed" in first
    assert "overruled" in second
    assert old in second, "what it replaced"


def test_the_same_version_again_is_one_version(model: Path) -> None:
    for word in ("pool", "spa", "spa"):
        train(model, word)
        publish_candidate(model)
    assert [entry.replaced for entry in registry.versions(model)] == [None, registry.versions(model)[0].version]


def test_models_side_by_side_share_a_registry(model: Path) -> None:
    other = model.with_name("other")
    for each in (model, other):
        train(each, "pool")
        publish_candidate(each)
    assert len(registry.versions(model)) == len(registry.versions(other)) == 1


@pytest.mark.parametrize(("standing", "built"), [("pool", False), ("fence", True), (None, True)])
def test_the_model_of_a_directory_is_its_own_version_whatever_gguf_lies_there(
    model: Path, monkeypatch: pytest.MonkeyPatch, standing: str | None, built: bool
) -> None:
    """As after a pull that brings a new adapter: the GGUF is not committed."""
    version = write_pair(model, "pool")
    gguf = build.model_file_of(model)
    gguf.unlink(missing_ok=True)
    if standing is not None:
        write_pair(model.parent / "other", standing)
        make(model.parent / "other", gguf)
    done: list[Path] = []

    class FakeClassifier:
        """Reads the version that `make` wrote."""

        def __init__(self, path: Path) -> None:
            self.card = SimpleNamespace(version=path.read_text().split()[1])

        open = classmethod(lambda cls, path: cls(path))

        def close(self) -> None: ...

    def build_again(directory: Path, _progress: object) -> None:
        done.append(directory)
        make(directory, build.model_file_of(directory))

    monkeypatch.setattr(publish, "Classifier", FakeClassifier)
    monkeypatch.setattr(publish, "build_model", build_again)
    assert publish.open_model(model).card.version == version
    assert bool(done) is built


@pytest.mark.parametrize("missing", [build.ADAPTER_FILE, build.METADATA_FILE, "made-up.gguf"])
def test_half_a_model_is_not_published(model: Path, missing: str) -> None:
    train(model, "pool")
    (model / publish.CANDIDATE / missing).unlink()
    with pytest.raises(PublishError, match="no finished model"):
        publish_candidate(model)
    assert registry.versions(model) == []


def test_metadata_of_one_training_and_adapter_of_another_are_not_published(model: Path) -> None:
    train(model, "pool")
    (model / publish.CANDIDATE / build.ADAPTER_FILE).write_bytes(b"another")
    with pytest.raises(PublishError, match="no finished model"):
        publish_candidate(model)


def test_going_back_to_what_is_unknown_or_damaged_changes_nothing(model: Path) -> None:
    old = train(model, "pool")
    publish_candidate(model)
    new = train(model, "spa")
    publish_candidate(model)
    with pytest.raises(PublishError, match=f"no version abc: it has {old}, {new}"):
        roll_back(model, "abc")
    (model / publish.VERSIONS / old / build.ADAPTER_FILE).write_bytes(b"rotten")
    with pytest.raises(PublishError, match="missing or damaged"):
        roll_back(model)
    assert_in_place(model, new)


def test_a_version_that_fails_its_self_check_is_not_put_in_place(model: Path) -> None:
    train(model, "pool")
    publish_candidate(model)
    new = train(model, "spa")
    publish_candidate(model)

    def fail(_: Path) -> None:
        raise build.BuildError("wrong")

    with pytest.raises(build.BuildError):
        publish.rollback(model, make=make, check=fail)
    assert_in_place(model, new)


def test_a_damaged_registry_is_named(model: Path) -> None:
    train(model, "pool")
    (model.parent / registry.REGISTRY_FILE).write_text('{"made-up": [{"version": 5}]}')
    with pytest.raises(PublishError, match=r"cannot read the registry .*registry\.json"):
        publish_candidate(model)


def dies_at(step: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process that dies, as by kill -9, in the place of its `step`-th rename. False if it made fewer."""
    real, done = os.replace, 0

    def counted(*paths: Any) -> None:
        nonlocal done
        if done == step:
            os._exit(9)
        done += 1
        real(*paths)

    def child() -> None:
        os.__dict__["replace"] = counted
        act()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, 9)
    return process.exitcode == 9


def put_together(model: Path) -> None:
    """What `python -m trainer build` does."""
    publish.mend(model)
    version = publish.version_in_place(model)
    assert version is not None
    assert build.content_version(model / build.ADAPTER_FILE, build.read_metadata(model)) == version
    make(model, build.model_file_of(model))


RENAMES = 9
"""Of a publication over a model without a registry: two kept versions, two entries, metadata, adapter, GGUF, and two files beside."""


@pytest.mark.parametrize("step", range(RENAMES + 1))
def test_a_publication_that_dies_leaves_a_working_model_and_can_be_finished(model: Path, step: int) -> None:
    old = write_pair(model, "pool")
    make(model, build.model_file_of(model))
    new = train(model, "spa")
    assert dies_at(step, lambda: publish_candidate(model)) is (step < RENAMES)
    assert served(model) == (old if step <= 6 else new)
    put_together(model)
    assert served(model) == (old if step <= 4 else new)
    train(model, "spa")
    publish_candidate(model)
    assert_in_place(model, new)
    assert roll_back(model).version == old
    assert_in_place(model, old)


@pytest.mark.parametrize("step", range(6))
def test_going_back_that_dies_leaves_a_working_model_and_can_be_repeated(model: Path, step: int) -> None:
    old = train(model, "pool")
    publish_candidate(model)
    new = train(model, "spa")
    publish_candidate(model)
    assert dies_at(step, lambda: roll_back(model)) is True
    assert served(model) in (old, new)
    roll_back(model, old)
    assert_in_place(model, old)


def test_a_disk_that_fails_is_told_of(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = train(model, "pool")
    publish_candidate(model)
    train(model, "spa")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PublishError, match=r"No space left on device.* a working model is still in place"):
        publish_candidate(model)
    assert served(model) == old
