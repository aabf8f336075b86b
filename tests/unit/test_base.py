"""Where a base model comes from. No network: what lies on the hub lies here in a directory of the form of the hub's cache."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from trainer import base as module
from trainer.base import Base, BaseError
from trainer.hub import ModelId, parse_model_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STAND_IN_CONVERTER = """
import pathlib, sys
if "refused" in sys.argv[1]:
    sys.exit("Model NoSuchModel is not supported")
output = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
output.write_text("GGUF of " + pathlib.Path(sys.argv[1], "model.safetensors").read_text())
"""


def packaged(package: str, file: str) -> Base:
    return Base(name="b", licence="MIT", package=package, file=file)


def sourced(source: object) -> Base:
    return Base(name="b", licence="MIT", source=str(source))


def checkpoint(directory: Path, weights: str = "weights", **config: object) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3"} | config))
    (directory / "model.safetensors").write_text(weights)
    return directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POINTSMAN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A stand-in that only copies; tests/integration/test_architectures.py has llama.cpp's own."""
    script = tmp_path / "stand_in_converter.py"
    script.write_text(STAND_IN_CONVERTER)
    monkeypatch.setattr(module, "CONVERTER", script)
    return script


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with Owner/tiny in it, whose branch main is at COMMIT, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--Owner--tiny"
    checkpoint(repository / "snapshots" / COMMIT)
    (repository / "snapshots" / COMMIT / "tiny.gguf").write_text("GGUF from the hub")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def test_a_base_whose_package_is_not_installed_says_what_to_do() -> None:
    with pytest.raises(BaseError, match="'no_such_package' is not installed: run `make setup`"):
        packaged("no_such_package", "f").path()


def test_a_base_whose_package_lacks_the_file_is_refused() -> None:
    with pytest.raises(BaseError, match=r"carries no file 'f\.gguf'"):
        packaged("yaml", "f.gguf").path()


def test_a_base_lies_in_its_package() -> None:
    assert packaged("yaml", "__init__.py").path() == Path(yaml.__file__)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf:Qwen/Qwen3-0.6B", ModelId("Qwen/Qwen3-0.6B", None, None)),
        ("hf:Qwen/Qwen3-0.6B@c1899de", ModelId("Qwen/Qwen3-0.6B", "c1899de", None)),
        ("hf:a/b:q8.gguf", ModelId("a/b", None, "q8.gguf")),
        ("hf:a/b@v1:sub/q8.gguf", ModelId("a/b", "v1", "sub/q8.gguf")),
    ],
)
def test_a_name_on_the_hub_is_read_and_written_alike(text: str, meant: ModelId) -> None:
    assert parse_model_id(text) == meant
    assert str(meant) == text


@pytest.mark.parametrize("text", ["hf:b", "hf:a/b/c", "hf:a/b:", "hf:a/b@:c.gguf", "hf:a/b:../c.gguf/", "hf:a/b:/c.gguf"])
def test_what_is_no_name_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write hf:OWNER/NAME"):
        parse_model_id(text)


def test_a_gguf_on_this_machine_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_text("GGUF")
    assert sourced(tmp_path / "base.gguf").path() == tmp_path / "base.gguf"
    assert sourced(tmp_path / "base.gguf").checkpoint() is None


def test_a_base_that_is_another_than_the_model_was_trained_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(b"GGUF of then")
    training = {"base": "b", "base_licence": "MIT", "base_source": str(path), "base_sha256": hashlib.sha256(b"GGUF of then").hexdigest()}
    assert Base.path_recorded_in(training) == path
    path.write_bytes(b"GGUF of now")
    with pytest.raises(BaseError, match="is not the base that the model was trained on"):
        Base.path_recorded_in(training)
    del training["base_sha256"]
    assert Base.path_recorded_in(training) == path, "it was not recorded for models of before"


def test_a_path_with_nothing_or_no_model_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="there is no base model at"):
        sourced(tmp_path / "none.gguf").path()
    with pytest.raises(BaseError, match=r"is no checkpoint: it has no config\.json"):
        sourced(tmp_path).path()


def test_a_checkpoint_is_converted_once_and_again_when_it_changes(tmp_path: Path, converter: Path) -> None:
    directory = checkpoint(tmp_path / "tiny")
    made = sourced(directory).path()
    assert made.read_text() == "GGUF of weights"
    assert sourced(directory).checkpoint() == directory
    converter.unlink()
    assert sourced(directory).path() == made, "kept, not converted again"
    (directory / "model.safetensors").write_text("other weights")
    with pytest.raises(BaseError, match="converter is not installed: run `make setup`"):
        sourced(directory).path()


def test_what_the_converter_refuses_is_told_in_its_words_and_leaves_nothing(tmp_path: Path, converter: Path, cache: Path) -> None:
    with pytest.raises(BaseError, match=r"refuses .*: Model NoSuchModel is not supported"):
        sourced(checkpoint(tmp_path / "refused")).path()
    assert list((cache / "bases").iterdir()) == []


def test_a_checkpoint_that_brings_a_program_is_refused(tmp_path: Path, converter: Path) -> None:
    """The converter and transformers would run it."""
    with pytest.raises(BaseError, match=r"brings a program of its own \(auto_map in config\.json\)"):
        sourced(checkpoint(tmp_path / "tiny", auto_map={"AutoModel": "theirs.Model"})).path()


def test_a_checkpoint_of_the_hub_is_converted_and_recorded_by_its_commit(offline_hub: Path, converter: Path) -> None:
    base = sourced("hf:Owner/tiny")
    assert base.path().read_text() == "GGUF of weights"
    recorded = base.record()
    assert recorded == {"base": "b", "base_licence": "MIT", "base_source": f"hf:Owner/tiny@{COMMIT}"}
    assert Base.recorded_in(recorded).path() == base.path()
    assert Base.recorded_in(recorded).record() == recorded


def test_a_gguf_of_the_hub_is_recorded_by_its_commit(offline_hub: Path) -> None:
    base = sourced("hf:Owner/tiny@main:tiny.gguf")
    assert base.path().read_text() == "GGUF from the hub"
    assert base.checkpoint() is None
    assert base.record()["base_source"] == f"hf:Owner/tiny@{COMMIT}:tiny.gguf"


@pytest.mark.parametrize("source", ["hf:Owner/other", "hf:Owner/tiny@v2", "hf:Owner/tiny:none.gguf"])
def test_what_cannot_be_fetched_says_so_and_what_to_do(offline_hub: Path, source: str) -> None:
    with pytest.raises(BaseError, match=f"cannot fetch {source} from the Hugging Face hub: .*give its path"):
        sourced(source).path()


def test_a_base_in_a_package_is_recorded_by_it() -> None:
    base = packaged("p", "f.gguf")
    assert Base.recorded_in(base.record()) == base
    assert sys.modules.get("p") is None
