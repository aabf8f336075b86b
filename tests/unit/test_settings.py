from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker.errors import SettingsError
from worker.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("POINTSMAN_"):
            monkeypatch.delenv(name)


def complaint(**overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_the_defaults_are_accepted() -> None:
    settings = load_settings()
    assert (settings.namespace, settings.group, settings.retention) == ("pointsman", "routers", "keep")


def test_two_workers_never_share_a_consumer_name() -> None:
    assert load_settings().consumer != load_settings().consumer


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_BATCH_SIZE", "64")
    monkeypatch.setenv("pointsman_group", "others")
    assert (load_settings().batch_size, load_settings().group) == (64, "others")


def test_the_command_line_comes_before_the_environment_and_none_means_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_NAMESPACE", "from-environment")
    monkeypatch.setenv("POINTSMAN_MODEL", "environment.gguf")
    settings = load_settings(namespace="from-command", model=None)
    assert (settings.namespace, settings.model) == ("from-command", Path("environment.gguf"))


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_BATCH_SIZE", "")
    assert load_settings().batch_size == 64


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("POINTSMAN_BATCHSIZE", "did you mean POINTSMAN_BATCH_SIZE?"),
        ("pointsman_redis_ur", "did you mean POINTSMAN_REDIS_URL?"),
        ("POINTSMAN_QQQ", "`pointsman doctor` lists all"),
    ],
)
def test_an_unknown_variable_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch, variable: str, hint: str) -> None:
    monkeypatch.setenv(variable, "1")
    text = complaint()
    assert f"{variable} is not a setting" in text
    assert hint in text


def test_other_programs_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMANAGER", "1")
    assert load_settings().batch_size == 64


def test_a_password_is_masked_wherever_settings_are_shown() -> None:
    settings = load_settings(redis_url="redis://user:hunter2@host:6379")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.redis_url.get_secret_value().endswith("hunter2@host:6379")


def test_a_bad_value_is_not_repeated_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_HTTP_PORT", "hunter2")
    assert "hunter2" not in complaint()


def test_a_claim_after_shorter_than_two_batches_is_refused() -> None:
    text = complaint(claim_after_s=19.9, batch_timeout_s=10)
    assert "claim_after_s (19.9) is shorter than twice batch_timeout_s (10)" in text
    assert "Raise claim_after_s" in text
    assert load_settings(claim_after_s=20, batch_timeout_s=10).claim_after_s == 20


@pytest.mark.parametrize("batch_size", [1, 8, 256])
def test_a_batch_size_alone_is_accepted_since_what_is_in_flight_follows_it(batch_size: int) -> None:
    assert load_settings(batch_size=batch_size).in_flight_limit == 4 * batch_size


def test_several_problems_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_TYPO", "1")
    monkeypatch.setenv("POINTSMAN_BATCH_SIZE", "many")
    text = complaint(http_port=70_000)
    assert [name for name in ("TYPO", "BATCH_SIZE", "HTTP_PORT") if f"  POINTSMAN_{name}" not in text] == []
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 257),
        ("max_in_flight", 0),
        ("max_query_tokens", 7),
        ("retention", "forget"),
        ("namespace", "two words"),
        ("namespace", "bell\a"),
        ("namespace", ""),
        ("model_sha256", "abc"),
        ("claim_every_s", 0),
        ("log_level", "loud"),
    ],
)
def test_an_impossible_value_names_its_variable(name: str, value: object) -> None:
    assert f"POINTSMAN_{name.upper()}: " in complaint(**{name: value})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().batch_size = 1


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_bad_settings_end_the_program_with_exit_code_two() -> None:
    assert SettingsError("x").exit_code == 2


def test_a_weight_format_is_one_that_llama_cpp_makes_or_a_way_to_choose() -> None:
    assert [load_settings(format=name).format for name in ("tuned", "auto", "original", "Q8_0")] == ["tuned", "auto", "original", "Q8_0"]
    assert "POINTSMAN_FORMAT: 'Q9' is not one of tuned, auto, original, F32" in complaint(format="Q9")


def test_the_home_directory_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_settings().cache_dir == Path("/home/someone/.cache/pointsman")
    assert load_settings(cache_dir="~/x").cache_dir == Path("/home/someone/x")
