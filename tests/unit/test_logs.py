from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from worker.logs import configure

SECRET = "my-secret-query"


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    libraries = [logging.getLogger(name) for name in ("uvicorn", "faststream", "redis")]
    former = [(library, library.level, library.handlers[:], library.propagate) for library in libraries]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for library, library_level, library_handlers, propagate in former:
        library.setLevel(library_level)
        library.handlers[:] = library_handlers
        library.propagate = propagate
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    captured = capsys.readouterr()
    assert captured.out == "", "standard output belongs to the commands"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_structured_record_is_one_json_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    structlog.get_logger("pointsman.test").warning("entry rejected", entry="1-0")
    (record,) = lines(capsys)
    assert record["timestamp"].endswith("Z")
    wanted = {"event": "entry rejected", "entry": "1-0", "level": "warning", "logger": "pointsman.test"}
    assert {key: record[key] for key in wanted} == wanted


def test_a_librarys_record_takes_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logging.getLogger("some.library").warning("port %d", 80)
    (record,) = lines(capsys)
    assert (record["event"], record["level"], record["logger"]) == ("port 80", "warning", "some.library")


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_records_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str], level: str, seen: int) -> None:
    configure(level, "json")
    log = structlog.get_logger("pointsman.test")
    for method in (log.debug, log.info, log.warning, log.error):
        method("x")
    assert len(lines(capsys)) == seen


def fail_with_locals() -> None:
    assert SECRET
    raise RuntimeError("lost connection")


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("debug", True)])
def test_a_librarys_traceback_is_written_in_debug_alone(capsys: pytest.CaptureFixture[str], level: str, shown: bool) -> None:
    configure(level, "json")
    try:
        fail_with_locals()
    except RuntimeError:
        logging.getLogger("some.library").exception("it broke: %s", "here")
    text = capsys.readouterr().err
    assert ("fail_with_locals" in text) is shown
    assert "it broke: here" in text
    assert "lost connection" in text


@pytest.mark.parametrize("name", ["uvicorn", "faststream", "redis"])
def test_chatty_libraries_say_no_more_than_warnings_even_in_debug(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configure("debug", "json")
    logging.getLogger(f"{name}.part").info("chatter")
    logging.getLogger(f"{name}.part").warning("matter")
    assert [record["event"] for record in lines(capsys)] == ["matter"]


def test_faststreams_own_handler_is_taken_off_so_that_its_records_pass_the_filter(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("faststream")
    library.addHandler(logging.StreamHandler(sys.stderr))
    library.propagate = False
    configure("info", "json")
    try:
        fail_with_locals()
    except RuntimeError:
        library.exception("handler failed")
    (record,) = lines(capsys)
    assert record["event"] == "handler failed: RuntimeError: lost connection"


def test_without_a_terminal_the_automatic_form_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "auto")
    structlog.get_logger("pointsman.test").info("x")
    assert lines(capsys)[0]["event"] == "x"


def test_the_console_form_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "console")
    structlog.get_logger("pointsman.test").info("hello", entry="1-0")
    text = capsys.readouterr().err
    assert "entry=1-0" in text
    assert not text.startswith("{")
