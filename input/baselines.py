"""Simple models of the same data, with which a run compares its result.

Each returns its name and its metrics on the held-out split by the names of the objectives' metrics
(`app/objectives`), or an `error`, so that a finished training is not lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from input.source import Source

MOST = 100_000  # training examples; more take long and change little

Baseline = dict[str, Any]


def few(source: Source) -> tuple[Any, Any]:
    """Reads at most MOST examples, spread over a split."""
    return source.fetch(range(0, len(source), max(1, -(-len(source) // MOST))))


def whole(source: Source) -> tuple[Any, Any]:
    """Reads all examples of a split."""
    return source.fetch(range(len(source)))


def of_texts(train: Source, test: Source, are_numbers: bool) -> Baseline:
    """Trains a linear model on TF-IDF of words and pairs of words: logistic or ridge regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    kind = "ridge" if are_numbers else "logistic"
    linear = Ridge(1.0) if are_numbers else LogisticRegression(C=10.0, max_iter=1000)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, decode_error="replace")
    return _fitted(f"TF-IDF and {kind} regression", make_pipeline(words, linear), train, test)


def of_numbers(train: Source, test: Source) -> Baseline:
    """Trains ridge regression on standardised columns."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    return _fitted("ridge regression", model, train, test)


def _fitted(name: str, model: Any, train: Source, test: Source) -> Baseline:
    from sklearn import metrics

    try:
        model.fit(*few(train))
    except ValueError as error:  # no word in common, or one class
        return {"name": name, "error": str(error)}
    inputs, targets = whole(test)
    found = {"name": name, "examples": len(targets)}
    if np.asarray(targets).dtype.kind != "f":
        return {**found, "accuracy": float(model.score(inputs, targets))}
    predicted = model.predict(inputs).reshape(np.shape(targets))
    return found | {
        "mae": float(metrics.mean_absolute_error(targets, predicted)),
        "rmse": float(metrics.mean_squared_error(targets, predicted) ** 0.5),
        "r2": float(metrics.r2_score(targets, predicted)),
    }


Rows = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]  # ids and targets of batches, [b, T]


def of_case(train: Rows, test: Rows, num_classes: int) -> Baseline:
    """Gives each word the class that it mostly has in training, others the commonest of all."""
    counts: dict[int, Counter[int]] = {}
    every: Counter[int] = Counter()
    for ids, targets in train():
        for word, kind in zip(
            ids[targets >= 0].tolist(), targets[targets >= 0].tolist(), strict=True
        ):
            counts.setdefault(word, Counter())[kind] += 1
            every[kind] += 1
    usual = {word: own.most_common(1)[0][0] for word, own in counts.items()}
    other = every.most_common(1)[0][0]
    confusion = np.zeros([num_classes, num_classes])
    for ids, targets in test():
        for word, kind in zip(
            ids[targets >= 0].tolist(), targets[targets >= 0].tolist(), strict=True
        ):
            confusion[kind, usual.get(word, other)] += 1
    are, named, right = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    occurs = are > 0
    return {
        "name": "each word's usual case",
        "f1": float(np.mean(2 * right[occurs] / (are + named)[occurs])),
        "accuracy": float(right.sum() / are.sum()),
        "tokens": int(are.sum()),
    }


def of_next_words(train: Rows, test: Rows, vocabulary: int) -> Baseline:
    """Predicts each word from the one before: pairs, interpolated with single words.

    P(w | v) = 0.5 c(v, w) / c(v) + 0.5 (c(w) + 1) / (N + vocabulary)
    """
    pairs: Counter[tuple[int, int]] = Counter()
    before: Counter[int] = Counter()
    single = np.ones(vocabulary)  # one each is added
    for ids, targets in train():
        pairs.update(_pairs(ids, targets))
        before.update(v for v, _ in _pairs(ids, targets))
        np.add.at(single, targets[targets >= 0], 1)
    single /= single.sum()
    losses, right = [], 0
    usual: dict[int, tuple[int, int]] = {}
    for (v, w), count in pairs.items():
        if count > usual.get(v, (0, 0))[0]:
            usual[v] = (count, w)
    for ids, targets in test():
        for v, w in _pairs(ids, targets):
            chance = pairs[v, w] / before[v] if v in before else single[w]
            losses.append(-np.log(0.5 * chance + 0.5 * single[w]))
            right += usual.get(v, (0, -1))[1] == w
    return {
        "name": "pairs of words",
        "perplexity": float(np.exp(np.mean(losses))),
        "accuracy": right / len(losses),
        "loss": float(np.mean(losses)),
        "tokens": len(losses),
    }


def _pairs(ids: np.ndarray, targets: np.ndarray) -> Iterable[tuple[int, int]]:
    """Returns the tokens that count, each with its target."""
    known = targets >= 0
    return zip(ids[known].tolist(), targets[known].tolist(), strict=True)
