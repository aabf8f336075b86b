"""What routes without any language model: always the most frequent label, and a linear classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from trainer.dataset import Example

Labels = Sequence[str]
Predict = Callable[[Sequence[str]], Labels]


def majority(train: Sequence[Example]) -> Predict:
    """The most frequent label, whatever the text; of equally frequent ones the first in alphabetical order."""
    counts = Counter(example.label for example in train)
    label = min(counts, key=lambda name: (-counts[name], name))
    return lambda texts: [label] * len(texts)


def tfidf_svm(train: Sequence[Example]) -> Predict:
    """Words and pairs of words, characters by two to five, a linear support vector machine."""
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    )
    model = make_pipeline(features, LinearSVC(C=1.0))
    model.fit([example.text for example in train], [example.label for example in train])
    return lambda texts: list(model.predict(list(texts)))
