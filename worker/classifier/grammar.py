"""The label set as a constraint on decoding: as GBNF text, and as a token trie. Pure.

The trie is what the engine evaluates. At a node with several continuations the model chooses among exactly
those, its probabilities renormalised; a node with one continuation is forced and costs no choice. The
product along the path of a label is the probability with which grammar-constrained sampling would give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

END = -1
"""The continuation that ends the answer: any end-of-generation token of the vocabulary."""


def gbnf(codes: Sequence[str]) -> str:
    """A llama.cpp grammar (GBNF) that accepts exactly one of `codes`."""
    return "root ::= " + " | ".join(_quote(code) for code in codes) + "\n"


def _quote(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char, char) for char in text) + '"'


@dataclass(frozen=True, slots=True)
class Step:
    """One token of the trie that must be computed for every query, because a choice comes after it."""

    token: int
    depth: int
    """Tokens between the end of the prompt and this one; 0 for the first."""
    branches: tuple[int, ...]
    """The branches (llama.cpp sequences of one query) in which this token is seen: consecutive numbers."""
    choice: int | None
    """Index of the choice made after this token, or None where the next one is forced."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A point where the model decides: the continuations it may pick from."""

    tokens: tuple[int, ...]
    """Allowed token ids; END where the answer may stop here."""
    labels: tuple[tuple[int, ...], ...]
    """For each allowed token, the indices of the labels that lie beyond it."""


@dataclass(frozen=True, slots=True)
class Trie:
    """The label set flattened for batched evaluation.

    `choices[0]` follows the prompt itself, even if it is forced. Where every label is one token it is the
    only one, `steps` is empty and a query needs one llama.cpp sequence.
    """

    steps: tuple[Step, ...]
    choices: tuple[Choice, ...]
    n_branches: int


def build_trie(label_tokens: Sequence[Sequence[int]]) -> Trie:
    """Flatten the labels' token ids into steps and choices, parents before children.

    Raises:
        ValueError: fewer than two labels, a label without tokens, or two labels with the same tokens.
    """
    paths = [tuple(tokens) for tokens in label_tokens]
    if len(paths) < 2:
        raise ValueError("a trie needs at least two labels")
    if not all(paths):
        raise ValueError("a label has no tokens")
    if len(set(paths)) < len(paths):
        raise ValueError("two labels have the same tokens")

    below: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for label, path in enumerate(paths):
        for depth in range(len(path) + 1):
            token = path[depth] if depth < len(path) else END
            below.setdefault(path[:depth], {}).setdefault(token, []).append(label)

    inner = sorted((node for node in below if node and len(below[node]) > 1), key=lambda node: (len(node), node))
    tips = sorted(node for node in inner if not any(other[: len(node)] == node for other in inner if other != node))
    ordered = [(), *inner]

    needed = sorted({node[:depth] for node in inner for depth in range(1, len(node) + 1)}, key=lambda n: (len(n), n))
    numbers = {node: index for index, node in enumerate(ordered)}
    steps = tuple(
        Step(
            token=node[-1],
            depth=len(node) - 1,
            branches=tuple(index for index, tip in enumerate(tips) if tip[: len(node)] == node),
            choice=numbers.get(node),
        )
        for node in needed
    )
    choices = tuple(Choice(tuple(below[node]), tuple(tuple(labels) for labels in below[node].values())) for node in ordered)
    return Trie(steps, choices, max(1, len(tips)))
