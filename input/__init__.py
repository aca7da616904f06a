"""Input: which examples make a step, and how they get from files to tensors.

    order.py, indexed.py   the loop over a data set: which examples, read, decoded and batched
    source.py, config.py   what data of your own are made of: a split, and its configuration
    images/, text/         the two kinds of data, each configured in its __init__.py
    tables/                columns of CSV, Parquet, Arrow, .npz files and tar shards, also remote
    datasets/              sets of TensorFlow Datasets, and builders of more
    rows.py, items.py      rows of CSV, TSV, JSON lines and text files; what is to be predicted

Nothing in this package knows of ranks or Horovod, or imports `app` or `models`.
"""


class InputError(Exception):
    """Data that is missing or damaged: says what, where, and how to fix it."""
