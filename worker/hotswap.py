"""A new GGUF replaces the old one between two batches.

The file is looked at every `every_s`. A new one is opened beside the old one, which checks it, in a thread of its own that
gives way to all others. Then the next batch is the new one's, and the inference thread closes the old one behind its last
batch. A file that cannot be used changes nothing, and is not tried again before it changes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import structlog

from worker.metrics import Metrics
from worker.pipeline import Decides

log = structlog.get_logger("pointsman.hotswap")
Seen = tuple[int, int, int, int]
_NICENESS = 10
"""Of the thread that opens: a tenth of the weight of the others, so that it also gets on where no core is ever idle."""


def look(path: Path) -> Seen | None:
    """What tells one content of a file from another: device, inode, size and time of change, symbolic links followed.

    None if there is no file, as between the two steps of a replacement that is not atomic.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class HotSwap:
    """Watches one model file.

    Args:
        standing: the file as it was before the model at work was opened.
        open_model: opens the file at `path`; what it raises says why the file cannot be used.
        use: gives all batches from the next on to a model; returns the one that had them.
        inference_thread: the one thread on which models are used.
    """

    def __init__(
        self,
        path: Path,
        standing: Seen | None,
        open_model: Callable[[], Decides],
        use: Callable[[Decides], Decides],
        inference_thread: Executor,
        metrics: Metrics,
        every_s: float,
    ) -> None:
        self._path, self._standing, self._open_model, self._use = path, standing, open_model, use
        self._inference_thread, self._metrics, self._every_s = inference_thread, metrics, every_s
        self._refused: Seen | None = None

    async def watch(self) -> None:
        """Until it is cancelled. A file is new once two looks in a row find it the same: until then somebody may be writing it."""
        before = self._standing
        while True:
            await asyncio.sleep(self._every_s)
            seen = await asyncio.to_thread(look, self._path)
            if seen is not None and seen == before and seen not in (self._standing, self._refused):
                await self._replace(seen)
            before = seen

    async def _replace(self, seen: Seen) -> None:
        log.info("opening a new model file", path=str(self._path))
        if self._standing is not None and seen[:2] == self._standing[:2]:
            log.warning("the model file was written in place, where the old model is mapped: what that decides now may be wrong")
        started = time.monotonic()
        try:
            model = await self._open(seen)
        except Exception as error:
            self._refused = seen
            self._metrics.model_file("refused")
            log.error("the new model file cannot be used, the old model stays", path=str(self._path), reason=str(error) or repr(error))
            return
        if model is None:
            return
        before = self._use(model)
        self._standing = seen
        self._metrics.model_file("swapped")
        seconds = round(time.monotonic() - started, 1)
        log.info("a new model decides", path=str(self._path), version=model.card.version, before=before.card.version, opened_in_s=seconds)
        await asyncio.get_running_loop().run_in_executor(self._inference_thread, before.close)

    async def _open(self, seen: Seen) -> Decides | None:
        """The model, or None if the file changed while it was read: it is no longer what was seen, whatever it is.

        The thread ends with its work, and takes along the threads with which llama.cpp computed the probes.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        opening = asyncio.get_running_loop().run_in_executor(thread, self._open_here, seen)
        thread.shutdown(wait=False)
        return await opening

    def _open_here(self, seen: Seen) -> Decides | None:
        _give_way()
        try:
            model = self._open_model()
        except Exception:
            if look(self._path) != seen:
                return None
            raise
        if look(self._path) != seen:
            model.close()
            return None
        return model


def _give_way() -> None:
    """Make this thread and those that it starts less urgent than all others. On Linux alone a thread has an urgency of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
