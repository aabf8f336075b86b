"""The settings' model: verified, in the weight format and with the options that are best here, and checked against its probes."""

from __future__ import annotations

import structlog

from worker.classifier import Classifier, EngineOptions, tuning
from worker.classifier.model_file import verify
from worker.settings import Settings

log = structlog.get_logger("pointsman.model")


def open_classifier(settings: Settings) -> Classifier:
    """Load the settings' model and check it against its probes.

    Raises:
        ModelFileError, EngineError: it cannot be used; the message says why.
    """
    options = EngineOptions(sequences=settings.batch_size, threads=settings.threads)
    if settings.model_sha256 is not None:
        verify(settings.model, settings.model_sha256)
    path, options = tuning.choose(
        settings.model, settings.format, settings.cache_dir, options, n_gpu_layers=settings.n_gpu_layers, on_trial=_log_trial
    )
    return Classifier.open(path, options=options, max_query_tokens=settings.max_query_tokens, n_gpu_layers=settings.n_gpu_layers)


def _log_trial(trial: tuning.Trial) -> None:
    log.info("measured a weight format", what=trial.what, speed=round(trial.ratio, 2), chosen=trial.chosen, note=trial.note)
