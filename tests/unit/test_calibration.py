from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worker.classifier.calibration import Calibration, expected_calibration_error, fit_temperature, probabilities

tables = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 6)), elements=st.floats(-700, 700))


@given(tables, st.floats(0.2, 10))
def test_every_row_is_a_distribution_whatever_the_scores(scores: np.ndarray, temperature: float) -> None:
    table = probabilities(scores, temperature)
    assert np.all(table >= 0)
    assert table.sum(axis=1) == pytest.approx(np.ones(len(scores)))


@given(tables, st.floats(0.2, 10))
def test_temperature_never_changes_which_label_comes_first(scores: np.ndarray, temperature: float) -> None:
    rows = np.arange(len(scores))
    table = probabilities(scores, temperature)
    assert np.all(table[rows, scores.argmax(axis=1)] == table.max(axis=1))


def test_a_high_temperature_makes_the_model_less_sure() -> None:
    scores = np.array([[0.0, -2.0]])
    assert probabilities(scores, 4.0)[0, 0] < probabilities(scores, 1.0)[0, 0] < probabilities(scores, 0.5)[0, 0]


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_data_is_found_again(true_temperature: float) -> None:
    generator = np.random.default_rng(3)
    scores = generator.normal(0, 3, size=(6000, 4))
    drawn = [int(generator.choice(4, p=row)) for row in probabilities(scores, true_temperature)]
    assert fit_temperature(scores, drawn) == pytest.approx(true_temperature, rel=0.1)


@pytest.mark.parametrize(
    ("confidences", "correct", "error"),
    [
        ([], [], 0.0),
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [True, False], 0.5),
        ([0.75, 0.75, 0.75, 0.75], [True, True, True, False], 0.0),
        ([0.95, 0.15], [False, False], 0.55),
    ],
)
def test_calibration_error_is_the_mean_gap_to_accuracy(confidences: list[float], correct: list[bool], error: float) -> None:
    assert expected_calibration_error(np.array(confidences), np.array(correct, dtype=bool)) == pytest.approx(error)


def test_a_label_without_a_threshold_of_its_own_has_the_default() -> None:
    calibration = Calibration(1.0, 0.4, {"pool": 0.9})
    assert (calibration.threshold_of("pool"), calibration.threshold_of("car")) == (0.9, 0.4)


def test_a_model_is_sure_from_its_labels_threshold_on_and_of_a_label_with_threshold_one_never() -> None:
    calibration = Calibration(1.0, 0.4, {"pool": 0.9, "car": 1.0})
    assert calibration.sure("pool", 0.9)
    assert not calibration.sure("pool", 0.8999)
    assert calibration.sure("fence", 0.4)
    assert not calibration.sure("car", 1.0)
    assert not calibration.sure("fence", float("nan"))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((0.0, 0.5, {}), "temperature"),
        ((float("nan"), 0.5, {}), "temperature"),
        ((1.0, 1.5, {}), "'default'"),
        ((1.0, 0.5, {"pool": -0.1}), "'pool'"),
    ],
)
def test_impossible_values_are_refused(values: tuple[float, float, dict[str, float]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Calibration(*values)


def test_an_offset_is_added_to_the_score_of_its_label_once_the_temperature_has_divided_it() -> None:
    scores = np.array([[0.0, -1.0, -2.0]])
    calibration = Calibration(2.0, offsets={"car": 1.5})
    moved = calibration.probabilities(scores, ("pool", "car", "hvac"))
    assert moved == pytest.approx(probabilities(np.array([[0.0, -0.5 + 1.5, -1.0]]), 1.0))


@pytest.mark.parametrize("offset", [float("nan"), float("inf")])
def test_an_offset_that_is_no_number_is_refused(offset: float) -> None:
    with pytest.raises(ValueError, match="offset of 'car'"):
        Calibration(offsets={"car": offset})
