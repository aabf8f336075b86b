"""A new model takes the place of the published one, and an earlier one can come back: whole, or not at all.

What is served is the GGUF, and one rename puts it in place. What a model's directory holds is decided by one rename too, that of
`pointsman.json`: it names a version, and if the process died before the adapter followed, `mend` takes it from where versions are
kept. That is `versions/VERSION/` in the directory: adapter and metadata alone, about 10 MB, since with the base they make the GGUF
again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer import build, registry, runtimes
from trainer.base import Base
from trainer.files import sync, write_whole
from trainer.registry import Judgement, PublishError, Version
from worker.classifier import Classifier
from worker.classifier.model_file import content_hash

CANDIDATE = ".training"
"""Where in a model's directory training leaves what is not published yet."""
VERSIONS = "versions"

Progress = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""


def self_check(gguf: Path) -> None:
    """Raises ModelFileError unless a worker could serve the file."""
    Classifier.open(gguf).close()


def build_gguf(source: Path, output: Path, progress: Progress = lambda _done, _total: None) -> None:
    """Build the GGUF of a directory that holds adapter and metadata.

    Raises:
        BuildError, BaseError: adapter, metadata or base is missing, or they do not fit.
    """
    metadata = build.read_metadata(source)
    base = Base.path_recorded_in(metadata["training"])
    build.build(base, build.read_adapter(source / build.ADAPTER_FILE), metadata, output, progress)


def publish(directory: Path, judgement: Judgement, *, check: Callable[[Path], None] = self_check) -> Version:
    """Put the candidate in the place of the model in `directory`, which is kept.

    The candidate lies in `directory / CANDIDATE`: adapter, metadata, and its GGUF under `candidate_file`.

    Raises:
        PublishError: there is no such candidate, a file cannot be written, or the registry cannot be read.
        ModelFileError: the candidate fails its self-check.
    """
    candidate, gguf = directory / CANDIDATE, candidate_file(directory)
    version = version_in_place(candidate)
    if version is None or not gguf.is_file() or not _belong_together(candidate, version):
        raise PublishError(f"there is no finished model in {candidate}: run `python -m trainer run` with its recipe first")
    check(gguf)
    with _publishing(directory):
        current = _adopt(directory)
        _keep(candidate, directory, version)
        before = registry.find(registry.versions(directory), version)
        replaced = current if current != version else before.replaced if before else None
        entry = _entry(directory, candidate, gguf, replaced, judgement)
        registry.register(directory, entry)
        _put_in_place(candidate, directory, gguf)
        shutil.rmtree(candidate)
    return entry


def rollback(
    directory: Path,
    to: str | None = None,
    *,
    make: Callable[[Path, Path], None] = build_gguf,
    check: Callable[[Path], None] = self_check,
) -> Version:
    """Build an earlier version again, check it, and put it in place.

    Args:
        to: the version; None for the one that the present one replaced.

    Raises:
        PublishError: there is no such version, what was kept of it is damaged, or a file cannot be written.
        BuildError, BaseError, ModelFileError: its GGUF cannot be built, or fails its self-check.
    """
    with _publishing(directory):
        current = _adopt(directory)
        known = registry.versions(directory)
        if to is None:
            present = registry.find(known, current)
            to = present.replaced if present else None
            if to is None:
                raise PublishError(f"{current or 'the model'} in {directory} replaced no other version: name one with --to")
        entry = registry.find(known, to)
        if entry is None:
            raise PublishError(f"{directory} has no version {to}: it has {', '.join(each.version for each in known) or 'none'}")
        kept = directory.parent / entry.kept
        if not _belong_together(kept, entry.version):
            raise PublishError(f"what {kept} keeps of version {to} is missing or damaged: restore it from a backup")
        gguf = kept / build.model_file_of(directory).name
        make(kept, gguf)
        check(gguf)
        entry = entry.model_copy(update={"published": registry.now(), "gguf_sha256": content_hash(gguf)})
        registry.register(directory, entry)
        _put_in_place(kept, directory, gguf)
    return entry


def version_in_place(directory: Path) -> str | None:
    """The version that the directory holds; None if it holds no model."""
    if not (directory / build.METADATA_FILE).is_file():
        return None
    return str(build.read_metadata(directory)["training"]["version"])


def mend(directory: Path) -> None:
    """Finish a publication that was cut short: bring the adapter that belongs to the directory's metadata."""
    version = version_in_place(directory)
    if version is not None and not _belong_together(directory, version):
        kept = directory / VERSIONS / version
        if _belong_together(kept, version):
            write_whole(directory / build.ADAPTER_FILE, (kept / build.ADAPTER_FILE).read_bytes())


def build_model(directory: Path, progress: Progress = lambda _done, _total: None) -> None:
    """Build the GGUF of what a directory holds, in its place, and what other programs want beside it.

    Raises:
        BuildError, BaseError: adapter, metadata or base is missing, or they do not fit.
    """
    mend(directory)
    model = build.model_file_of(directory)
    build_gguf(directory, model, progress)
    runtimes.write(directory, build.read_metadata(directory), model)


def open_model(directory: Path, progress: Progress = lambda _done, _total: None) -> Classifier:
    """The model that a directory holds, as it is served: its GGUF is built first if there is none, or that of another version.

    Raises:
        BuildError, BaseError, ModelFileError: it cannot be built, or cannot be used.
    """
    path, version = build.model_file_of(directory), version_in_place(directory)
    if path.is_file():
        classifier = Classifier.open(path)
        if version in (None, classifier.card.version):
            return classifier
        classifier.close()
    build_model(directory, progress)
    return Classifier.open(path)


def candidate_file(directory: Path) -> Path:
    """The GGUF of a model that is trained and not yet published."""
    return directory / CANDIDATE / build.model_file_of(directory).name


def _put_in_place(source: Path, directory: Path, gguf: Path) -> None:
    """The order matters: see the top of this module. The GGUF is made the newest, as make wants it."""
    write_whole(directory / build.METADATA_FILE, (source / build.METADATA_FILE).read_bytes())
    write_whole(directory / build.ADAPTER_FILE, (source / build.ADAPTER_FILE).read_bytes())
    model = build.model_file_of(directory)
    sync(gguf)
    os.utime(gguf)
    os.replace(gguf, model)
    runtimes.write(directory, build.read_metadata(directory), model)


def _adopt(directory: Path) -> str | None:
    """The version in place, which is kept and registered if it is not yet; None also where its metadata cannot be read."""
    try:
        mend(directory)
        version = version_in_place(directory)
    except build.BuildError:
        return None
    if version is None or not _belong_together(directory, version):
        return version
    _keep(directory, directory, version)
    if registry.find(registry.versions(directory), version) is None:
        model = build.model_file_of(directory)
        registry.register(directory, _entry(directory, directory, model, None, None))
    return version


def _keep(source: Path, directory: Path, version: str) -> None:
    kept = directory / VERSIONS / version
    if _belong_together(kept, version):
        return
    partial = kept.with_name(f"{version}.partial")
    for stale in (partial, kept):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (build.ADAPTER_FILE, build.METADATA_FILE):
        shutil.copy2(source / name, partial / name)
        sync(partial / name)
    os.replace(partial, kept)


def _belong_together(directory: Path, version: str) -> bool:
    """Whether adapter and metadata are there and both of this version."""
    try:
        return build.content_version(directory / build.ADAPTER_FILE, build.read_metadata(directory)) == version
    except (OSError, build.BuildError, KeyError):
        return False


def _entry(directory: Path, source: Path, gguf: Path, replaced: str | None, judgement: Judgement | None) -> Version:
    metadata = build.read_metadata(source)
    training = metadata["training"]
    return Version(
        version=training["version"],
        published=registry.now(),
        replaced=replaced,
        adapter_sha256=_sha256(source / build.ADAPTER_FILE),
        gguf_sha256=content_hash(gguf) if gguf.is_file() else None,
        data_sha256=training.get("data_sha256"),
        accuracy=metadata["evaluation"].get("test", {}).get("accuracy"),
        gate=judgement,
        kept=f"{directory.name}/{VERSIONS}/{training['version']}",
    )


@contextmanager
def _publishing(directory: Path) -> Iterator[None]:
    """One at a time among the models that share a registry."""
    lock = os.open(directory.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise PublishError(
            f"cannot publish to {directory} ({error}): a working model is still in place; mend this and try again"
        ) from error
    finally:
        os.close(lock)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
