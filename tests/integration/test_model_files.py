"""Model files that cannot be used are refused with one clear line; model files are built reproducibly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.integration.parts import base_file, metadata
from tests.support import MODEL_DIRECTORY, assert_clear_failure, command
from trainer.build import ADAPTER_FILE, Adapter, BuildError, build, read_adapter, read_metadata
from trainer.codes import choose_codes
from worker.classifier import Classifier
from worker.classifier.model_file import load

COMMANDS = (("classify", "x"), ("run",))
NOWHERE: Mapping[str, Any] = {"redis_url": "redis://127.0.0.1:1", "http_port": 0}
"""No Redis listens there: a command that gets past its model fails with other words."""

PREFIX, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
PROBE = "The pool pump is humming"

both_commands = pytest.mark.parametrize("line", COMMANDS, ids=[line[0] for line in COMMANDS])


@pytest.fixture(scope="module")
def usable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that loads: the base's weights under three label names."""
    path = tmp_path_factory.mktemp("usable") / "usable.gguf"
    build(base_file(), None, metadata(("car", "car wash", "pool"), PREFIX, SUFFIX), path)
    return path


def refusal(line: tuple[str, ...], model: Path, *words: str, **settings: Any) -> None:
    """The command ends with exit code 1 and these words in its one line on stderr."""
    done = command(*line, model=model, **settings, **NOWHERE)
    stderr = assert_clear_failure(done, *words, exit_code=1)
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert done.stdout == b""


@both_commands
def test_a_missing_model_is_named_with_the_way_to_get_one(line: tuple[str, ...], tmp_path: Path) -> None:
    refusal(line, tmp_path / "none.gguf", f"there is no model file at {tmp_path / 'none.gguf'}", "make model", "POINTSMAN_MODEL")


@both_commands
def test_a_directory_is_no_model(line: tuple[str, ...], tmp_path: Path) -> None:
    refusal(line, tmp_path, "there is no model file at")


@both_commands
@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>"], ids=["empty", "html"])
def test_a_file_that_is_no_gguf_is_refused(line: tuple[str, ...], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(content)
    refusal(line, path, str(path), "is not a GGUF file")


@both_commands
@pytest.mark.parametrize("share", [0.5, 0.001], ids=["in-the-weights", "in-the-header"])
def test_half_a_download_is_refused(line: tuple[str, ...], usable: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "half.gguf"
    content = usable.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refusal(line, path, str(path), "cannot be loaded", "damaged")


@both_commands
def test_a_gguf_without_pointsman_metadata_is_refused(line: tuple[str, ...]) -> None:
    refusal(line, base_file(), "without Pointsman metadata", "python -m trainer build")


@both_commands
def test_a_model_that_does_not_give_its_probes_is_refused(line: tuple[str, ...], usable: Path, tmp_path: Path) -> None:
    classifier = Classifier.open(usable)
    decision = classifier.classify([PROBE])[0]
    classifier.close()
    wrong = next(label for label in decision.probabilities if label != decision.label)
    path = tmp_path / "wrong.gguf"
    probe = {"text": PROBE, "label": wrong, "probability": decision.confidence}
    build(base_file(), None, metadata(decision.probabilities, PREFIX, SUFFIX, [probe]), path)
    refusal(line, path, "fails its self-check", f"must give {wrong}", f"it gives {decision.label}")


def test_a_model_that_gives_its_probes_is_used(usable: Path, tmp_path: Path) -> None:
    classifier = Classifier.open(usable)
    decision = classifier.classify([PROBE])[0]
    classifier.close()
    path = tmp_path / "right.gguf"
    probe = {"text": PROBE, "label": decision.label, "probability": decision.confidence}
    build(base_file(), None, metadata(decision.probabilities, PREFIX, SUFFIX, [probe]), path)
    done = command("classify", PROBE, model=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(decision.label)


@both_commands
def test_a_model_with_another_hash_than_the_setting_is_refused(line: tuple[str, ...], usable: Path) -> None:
    found = hashlib.sha256(usable.read_bytes()).hexdigest()
    refusal(line, usable, f"has SHA-256 {found}", f"expected {'ab' * 32}", "refusing to load", model_sha256="AB" * 32)


def test_a_model_with_the_hash_of_the_setting_is_used(usable: Path) -> None:
    found = hashlib.sha256(usable.read_bytes()).hexdigest()
    done = command("classify", "x", model=usable, model_sha256=found.upper())
    assert done.returncode == 0, done.stderr


def test_building_the_household_model_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    hashes = set()
    for _ in range(2):
        path = tmp_path / "built.gguf"
        build(base_file(), read_adapter(MODEL_DIRECTORY / ADAPTER_FILE), read_metadata(MODEL_DIRECTORY), path)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
        assert [file.name for file in tmp_path.iterdir()] == ["built.gguf"], "a partial file was left behind"
        path.unlink()
    assert len(hashes) == 1


def update(rows: int, columns: int, rank: int = 4, rank_of_b: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((rank, columns), np.float32), np.ones((rows, rank_of_b), np.float32)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("blk.99.attn_q.weight", update(576, 576)),
        ("blk.0.attn_q.weight", update(576, 100)),
        ("blk.0.attn_q.weight", update(1, 576)),
        ("blk.0.attn_q.weight", update(576, 576, rank=4, rank_of_b=8)),
        ("blk.0.attn_norm.weight", update(576, 576)),
    ],
    ids=["no-such-tensor", "columns", "one-row", "ranks", "vector"],
)
def test_an_adapter_that_does_not_fit_the_base_is_refused(tmp_path: Path, name: str, factors: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(BuildError, match=name):
        build(base_file(), Adapter({name: factors}, 8.0), metadata(("a", "b"), PREFIX, SUFFIX), tmp_path / "never.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_file_with_half_of_its_factors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 576), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BuildError, match=r"blk\.0\.attn_q\.weight"):
        read_adapter(path)


def test_a_gguf_that_is_no_adapter_is_refused() -> None:
    with pytest.raises(BuildError, match="no LoRA adapter"):
        read_adapter(base_file())


@pytest.mark.parametrize("content", [b"", b"not a gguf at all, but long enough"], ids=["empty", "text"])
def test_an_adapter_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=r"adapter\.gguf is not a GGUF"):
        read_adapter(path)


def test_the_bases_vocabulary_has_a_code_of_one_token_for_each_of_a_thousand_labels(model_file: Path) -> None:
    model = load(model_file, vocab_only=True)
    codes = choose_codes([str(number) for number in range(1000)], lambda text: model.tokenize(text, parse_special=False))
    tokens = [model.tokenize(code, parse_special=False) for code in codes]
    model.close()
    assert {len(each) for each in tokens} == {1}
    assert len({token for (token,) in tokens}) == 1000
