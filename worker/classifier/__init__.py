"""Text -> Decision: a self-describing GGUF, run by llama.cpp, constrained to its label set."""

from worker.classifier.classifier import Classifier, Decision
from worker.classifier.engine import EngineError, EngineOptions
from worker.classifier.model_file import ModelCard, ModelFileError

__all__ = ["Classifier", "Decision", "EngineError", "EngineOptions", "ModelCard", "ModelFileError"]
