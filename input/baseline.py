"""What a fine-tuned encoder must beat: a linear model on weighted words."""

from __future__ import annotations

from typing import Any

from input.sources import Source

MOST = 100_000  # training texts, evenly spread; more change the figure little and take long


def tf_idf(train: Source, test: Source) -> dict[str, Any]:
    """Accuracy of TF-IDF (words and pairs of words) and logistic regression.

    Of texts that it cannot learn from, `error` says why; a finished training is not lost.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    name = "TF-IDF and logistic regression"
    texts, labels = train.fetch(range(0, len(train), -(-len(train) // MOST)))
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, decode_error="replace"),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    try:
        model.fit(texts, labels)
    except ValueError as error:  # no word in common, or one class
        return {"name": name, "error": str(error)}
    texts, labels = test.fetch(range(len(test)))
    return {"name": name, "accuracy": float(model.score(texts, labels)), "examples": len(labels)}
