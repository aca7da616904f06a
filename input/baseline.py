"""What a fine-tuned encoder must beat: a linear model on weighted words."""

from __future__ import annotations

from typing import Any

from input.sources import Source

MOST = 100_000  # training texts; more change the figure little and take long


def tf_idf(train: Source, test: Source) -> dict[str, Any]:
    """Accuracy of TF-IDF (words and pairs of words) and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = train.fetch(range(min(len(train), MOST)))
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, decode_error="replace"),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    model.fit(texts, labels)
    texts, labels = test.fetch(range(len(test)))
    return {
        "name": "TF-IDF and logistic regression",
        "accuracy": float(model.score(texts, labels)),
        "examples": len(labels),
    }
