"""Pointsman's worker: queries come in on a Redis stream and leave on the stream of their category."""

__version__ = "0.1.0"
