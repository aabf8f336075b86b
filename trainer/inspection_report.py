"""What an inspection found, for a person at a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from trainer.inspection import FEW_ROWS, Dropped, Inspection, Pair

_FIRST = 5
"""Rows shown of each kind; --json gives all."""


def show(out: Console, name: str, found: Inspection) -> None:
    """Print the figures, and the first rows of each problem."""
    (largest, most), *_, (smallest, least) = found.labels.items()
    _figures(out, f"{name}: {found.rows} rows, {len(found.labels)} labels")
    _figures(out, f"balance   {largest} {most} rows, {smallest} {least}: {found.imbalance:.1f} to 1")
    few = [f"{label} {count}" for label, count in found.few.items()]
    if few:
        shown = ", ".join(few[-2 * _FIRST :]) + (" and more" if len(few) > 2 * _FIRST else "")
        _figures(out, f"few rows  {len(few)} of {len(found.labels)} labels have fewer than {FEW_ROWS}: {shown}")
    tokens = found.tokens
    _figures(
        out,
        f"length    median {tokens.median:.0f} tokens of {tokens.model}, p95 {tokens.p95:.0f}, longest {tokens.longest} (row "
        f"{tokens.longest_row}); cut at {tokens.limit}: {len(tokens.cut)}" + _rows(tokens.cut),
    )
    copies = found.copies
    _pairs(out, "rows that repeat an earlier one", copies.duplicates)
    _pairs(out, "pairs of nearly the same text", copies.near_duplicates)
    _pairs(out, "pairs of the same or nearly the same text under two labels", copies.contradictions)
    _pairs(out, "rows that are, or nearly, in another file", copies.leaks)
    _figures(out, f"suspicious labels, where a classifier that has not seen the row believes in another: {len(found.suspicious)}")
    for doubt in found.suspicious[: 2 * _FIRST]:
        rival = f"{doubt.suggested} {doubt.suggested_probability:.0%} rather than {doubt.place.label} {doubt.probability:.0%}"
        _row(out, f"row {doubt.place.row}: {rival}: {doubt.place.text}")


def show_dropped(out: Console, target: str, kept: int, dropped: Sequence[Dropped]) -> None:
    """Print what a cleaned file does without: how many rows for what reason, and the first of each."""
    _figures(out, f"{target}: {kept} rows; dropped: {len(dropped)}")
    for kind, count in Counter(row.kind for row in dropped).items():
        _figures(out, f"dropped, {kind}: {count}")
        for row in [row for row in dropped if row.kind == kind][:_FIRST]:
            _row(out, f"row {row.place.row} {row.reason}: {row.place.text}")


def _pairs(out: Console, what: str, pairs: Sequence[Pair]) -> None:
    _figures(out, f"{what}: {len(pairs)}")
    for pair in pairs[:_FIRST]:
        sign = "=" if pair.exact else "~"
        labels = pair.left.label if pair.left.label == pair.right.label else f"{pair.left.label} / {pair.right.label}"
        second = "" if pair.exact else f" {sign} {pair.right.text}"
        where = f"{pair.right.file} row {pair.right.row}" if pair.right.file else f"row {pair.right.row}"
        _row(out, f"row {pair.left.row} {sign} {where}: {labels}: {pair.left.text}{second}")


def _rows(numbers: Sequence[int]) -> str:
    return f" (row {', '.join(map(str, numbers[:_FIRST]))}{', …' if len(numbers) > _FIRST else ''})" if numbers else ""


def _figures(out: Console, line: str) -> None:
    out.print(_printable(line), markup=False, highlight=False, soft_wrap=not out.is_terminal)


def _row(out: Console, line: str) -> None:
    """One line, on a terminal cut at its edge."""
    line = "  " + _printable(line)
    if out.is_terminal:
        out.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    else:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _printable(line: str) -> str:
    """No line break or control character of a text or label reaches the terminal."""
    return "".join(" " if char.isspace() else char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
