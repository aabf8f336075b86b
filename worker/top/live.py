"""One frame after the other: for scripts, or on a terminal until `q`, where Redis may go and come back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from redis.asyncio import Redis
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.text import Text

from worker.errors import REDIS_ERRORS
from worker.routing import Streams
from worker.terminal import safe
from worker.top.frame import Frame, Reading, make_frame
from worker.top.scrape import scrape
from worker.top.snapshot import take
from worker.top.view import render, seconds

LEAST_PAUSE_S = 0.1
"""Between two readings, however long one takes."""


@dataclass(frozen=True, slots=True)
class Source:
    """Whom to ask."""

    redis: Redis
    streams: Streams
    group: str
    urls: tuple[str, ...]
    """Addresses of workers."""
    expected: bool
    """Whether each of those must answer, and be of this group; if not, what is not is passed over in silence."""

    async def read(self, before: Reading | None) -> Reading:
        """Raises REDIS_ERRORS."""
        earlier = before.redis if before else None
        redis, workers = await asyncio.gather(take(self.redis, self.streams, self.group, earlier), scrape(self.urls))
        if not self.expected:
            ours = (each for each in workers.workers if (each.stream, each.group) == (self.streams.queries, self.group))
            workers = replace(workers, workers=tuple(ours), failed=())
        return Reading(redis, workers)

    def frame(self, now: Reading, before: Reading | None) -> Frame:
        return make_frame(self.streams, self.group, now, before)


async def frames(source: Source, interval_s: float) -> AsyncIterator[Frame]:
    """A frame at the end of each interval. Raises REDIS_ERRORS."""
    before = await source.read(None)
    while True:
        await asyncio.sleep(interval_s)
        now = await source.read(before)
        yield source.frame(now, before)
        before = now


async def watch(source: Source, console: Console, interval_s: float) -> None:
    """Show frames on the whole terminal until `q`, Ctrl-C or SIGTERM."""
    shown = _Shown(interval_s)
    with Live(shown, console=console, screen=True, auto_refresh=False) as live:
        work = asyncio.create_task(_show(source, live, shown))

        def end() -> None:
            shown.ended = True  # before Python 3.12 a cancellation may be swallowed where redis-py sends (gh-86296)
            work.cancel()

        with _signals(end, live.refresh), _keys(end):
            await asyncio.wait([work])
    if not work.cancelled():
        work.result()


@dataclass(slots=True)
class _Shown:
    """What is on the terminal; drawn anew for its size of the moment."""

    interval_s: float
    frame: Frame | None = None
    problem: str = ""
    """Why there is no newer frame."""
    since: float = 0.0
    ended: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        line = Text(f"every {self.interval_s:g} s, q ends", "dim")
        if self.problem:
            ago = seconds(time.monotonic() - self.since)
            line = Text(f"no news from Redis for {ago}, trying again: {safe(self.problem)}", "bold red")
        line.truncate(options.max_width, overflow="ellipsis")
        yield Group(line, render(self.frame, options.max_width, console.height - 1) if self.frame else Text("asking"))


async def _show(source: Source, live: Live, shown: _Shown) -> None:
    before: Reading | None = None
    while not shown.ended:
        live.refresh()
        started = time.monotonic()
        try:
            now = await source.read(before)
            shown.frame, shown.problem = source.frame(now, before), ""
            before = now
        except REDIS_ERRORS as error:
            shown.since = shown.since if shown.problem else started
            shown.problem = str(error) or type(error).__name__
        live.refresh()
        await asyncio.sleep(max(LEAST_PAUSE_S, started + shown.interval_s - time.monotonic()))


@contextmanager
def _signals(end: Callable[[], None], resized: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    wanted = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGWINCH: resized}
    for number, handler in wanted.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


@contextmanager
def _keys(end: Callable[[], None]) -> Iterator[None]:
    """Read single keys, without echo; nothing where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()

    def pressed() -> None:
        keys = os.read(keyboard, 64)
        if b"q" in keys.lower():
            end()
        elif not keys:
            loop.remove_reader(keyboard)

    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
