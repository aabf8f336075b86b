"""Texts that say nearly the same, and texts of one frame. Pure."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

NEAR_DUPLICATE = 0.6
"""Jaccard similarity of character trigrams from which two texts count as the same."""
_BUCKETS, _ROWS_AT_ONCE = 2048, 256


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return re.sub(r"[^\w ]+", " ", text.lower().replace("'", "").replace("’", "")).split()


def plain(text: str) -> str:
    """Its words alone: texts that have the same say the same."""
    return " ".join(words(text))


def _trigrams(text: str) -> set[str]:
    line = f"  {plain(text)}  "
    return {line[i : i + 3] for i in range(len(line) - 2)}


def near_duplicates(texts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> list[tuple[int, int]]:
    """Pairs of texts whose character trigrams overlap by at least `threshold` (Jaccard), the earlier text first.

    A matrix product of hashed trigram counts bounds every pair's overlap from above; only what may be enough is compared.
    """
    shingles = [_trigrams(text) for text in texts]
    counts = np.zeros((len(texts), _BUCKETS), dtype=np.float32)
    for row, shingle in enumerate(shingles):
        counts[row] = np.bincount([zlib.crc32(gram.encode()) % _BUCKETS for gram in shingle], minlength=_BUCKETS)
    sizes = counts.sum(axis=1)
    pairs = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(texts))
        most_shared = counts[start:stop] @ counts[:stop].T
        enough = threshold / (1 + threshold) * (sizes[start:stop, None] + sizes[:stop])
        for row, other in np.argwhere(most_shared > enough - 0.5).tolist():
            current = start + row
            shared = len(shingles[current] & shingles[other])
            if other < current and shared >= threshold * (len(shingles[current]) + len(shingles[other]) - shared):
                pairs.append((other, current))
    return pairs


def near_duplicate_clusters(texts: Sequence[str]) -> list[list[int]]:
    """Indices of all texts, those linked by near-duplication together."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        places[plain(text)].append(index)  # a thousand equal texts would be half a million pairs
    parent = list(range(len(places)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for left, right in near_duplicates(list(places)):
        parent[root(right)] = root(left)
    clusters: dict[int, list[int]] = defaultdict(list)
    for node, indices in enumerate(places.values()):
        clusters[root(node)] += indices
    return [sorted(cluster) for cluster in clusters.values()]


_LITTLE_WORDS = frozenset(
    "a an the this that these those my our your his her its their i we you he she it they me us him them who what when "
    "where why how which whose is are was were be been being am do does did done have has had can could should would "
    "will shall may might must not no any some of in on at to for from by with about into over under after before since "
    "until during between up down out off and or but if so than then there here just only also still ever never last "
    "next first again too very much many more most long often all every each both one two get got need want time".split()
)


def frames(texts: Sequence[str], least_words: int = 3) -> dict[str, list[int]]:
    """Texts by their frame: the little words kept, every run of others replaced by a blank `_`.

    Only frames with at least `least_words` little words are counted; shorter ones are how English is.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        slots = [word if word in _LITTLE_WORDS else "_" for word in words(text)]
        frame = slots[:1] + [b for a, b in pairwise(slots) if not (a == b == "_")]
        if sum(word != "_" for word in frame) >= least_words:
            found[" ".join(frame)].append(index)
    return dict(found)
