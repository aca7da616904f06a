"""Defines the named experiments. A docstring is a recipe card: source, hardware, time, result.

To add your own, write a function that returns an Experiment, in this file or in one of yours
(`--experiment=path/to/file.py:function` or `module:function`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from traceback import extract_tb
from typing import get_type_hints

from app.config import Experiment, Optimization
from app.errors import UsageError
from app.objectives import (
    Classification,
    LanguageModel,
    MultiLabel,
    Regression,
    TokenClassification,
)
from app.optimizers import LARS, SGD, AdamW
from app.schedules import Constant, Cosine, Linear, Steps
from input import paths
from input.images import Images
from input.tables import Table
from input.text import Text
from models.mlp import MLP
from models.resnet import ResNet
from models.transformer import BASE_OF_LORA, Transformer


def resnet50_digits() -> Experiment:
    """ResNet-50 on scikit-learn's 1,797 scanned digits: the first run on a new machine.

    Scans of 8x8 pixels are resized to 32x32; the stem brings them back to 8x8. The optimizer is
    LARS, as there are only 146 steps: with SGD the loss rose at first (at global batch 256, after
    20 of 73 steps, it was 5.2 at rate 0.1, 4.1 at 0.05 with Nesterov momentum, and 1.0 with LARS).
    Settings were chosen on a fifth of the training images: accuracy 0.983, 0.979 and 0.979 for
    seeds 0 to 2, against 0.962, 0.976 and 0.969 at global batch 256. README has the result on the
    test images.

        ./run.sh
    """
    return Experiment(
        model=ResNet(depth=50),
        data=Images("digits", size=32, augmentation="shift"),
        global_batch=128,
        micro_batch=32,
        epochs=13,
        optimization=Optimization(
            optimizer=LARS(trust_coefficient=0.05, weight_decay=5e-4), warmup_epochs=2
        ),
    )


def resnet18_fashion() -> Experiment:
    """A narrow ResNet-18 on Fashion-MNIST, 10 epochs: test accuracy 0.925.

    One run with seed 0 took 1,395 s on 2 cores of a Xeon with AMX (2 processes of 1 thread, on a
    busy machine): 488 images/s. No setting was chosen on the test images.

    ./run.sh prepare --experiment=resnet18_fashion
    NP=2 ./run.sh train --experiment=resnet18_fashion
    """
    return Experiment(
        model=ResNet(depth=18, width=16, stem="cifar"),
        data=Images("fashion_mnist", size=28, augmentation="shift_flip"),
        global_batch=256,
        micro_batch=64,
        epochs=10,
        optimization=Optimization(
            optimizer=SGD(nesterov=True, weight_decay=5e-4), learning_rate=0.1, warmup_epochs=1
        ),
    )


def resnet50_cifar10() -> Experiment:
    """ResNet-50 with the CIFAR stem on CIFAR-10 (TFDS downloads it). Not yet run to the end.

    ./run.sh prepare --experiment=resnet50_cifar10
    NP=8 ./run.sh train --experiment=resnet50_cifar10
    """
    return Experiment(
        model=ResNet(depth=50, stem="cifar"),
        data=Images("cifar10", size=32, augmentation="shift_flip"),
        global_batch=512,
        micro_batch=64,
        epochs=100,
        optimization=Optimization(
            optimizer=SGD(nesterov=True, weight_decay=5e-4), learning_rate=0.1
        ),
    )


def resnet50_imagenet() -> Experiment:
    """ResNet-50 on ImageNet by 128 processes, global batch 8,192 (Goyal et al., 1706.02677).

    Published results: 76.3 % top-1 in one hour on 256 P100; 23.97 % error in 1 h 23 on 128 P100
    with Horovod and this batch (tensorpack's ResNet-Horovod). A step has 128 micro-batches of 64;
    the rate is 3.2 = 0.1 x 8192 / 256 after 5 epochs, divided by 10 after 30, 60 and 80. The
    result does not depend on the number of processes, which may be 1 to 128. TFDS needs the two
    ILSVRC2012 archives in `<data_dir>/downloads/manual`.

        ./run.sh prepare --experiment=resnet50_imagenet
        horovodrun -np 128 -H a:8,b:8,... python -m app train --experiment=resnet50_imagenet
    """
    return Experiment(
        model=ResNet(depth=50),
        data=Images("imagenet2012", size=224, augmentation="imagenet"),
        global_batch=8192,
        micro_batch=64,
        epochs=90,
        optimization=Optimization(
            optimizer=SGD(weight_decay=1e-4),
            schedule=Steps(decay_epochs=(30, 60, 80), decay_factor=0.1),
            warmup_epochs=5,
        ),
    )


def resnet50_imagenet_lars() -> Experiment:
    """ResNet-50 on ImageNet at global batch 32,768 with LARS (1708.03888), mixed precision.

    Not yet run to the end: no accuracy is claimed. It trains in bfloat16, with label smoothing and
    a moving average of the weights, which is evaluated too.

        horovodrun -np 128 -H a:8,b:8,... python -m app train --experiment=resnet50_imagenet_lars
    """
    base = resnet50_imagenet()
    return dataclasses.replace(
        base,
        global_batch=32768,
        precision="bfloat16",
        objective=Classification(label_smoothing=0.1),
        optimization=Optimization(
            optimizer=LARS(weight_decay=5e-5),
            schedule=Cosine(),
            learning_rate=0.25,
            warmup_epochs=5,
            ema_decay=0.995,
        ),
    )


def resnet50_synthetic() -> Experiment:
    """ResNet-50 on random 224-pixel JPEGs: measures a machine, and learns nothing.

    ./run.sh benchmark
    """
    return Experiment(
        model=ResNet(depth=50),
        data=Images("synthetic", size=224, augmentation="imagenet"),
        global_batch=32,
        micro_batch=16,
        steps=20,
        optimization=Optimization(schedule=Constant(), warmup_epochs=0, learning_rate=0.001),
    )


def sentiment_reviews() -> Experiment:
    """MiniLM (6 layers, width 384) fine-tuned to classify film reviews as positive or negative.

    The data are 10,568 sentences rated by people (`movie_sentences`), of which a tenth each is held
    out for validation and test. A linear model on TF-IDF is trained for comparison.

    ./run.sh prepare --experiment=sentiment_reviews
    NP=1 ./run.sh train --experiment=sentiment_reviews
    NP=4 ./run.sh train --experiment=sentiment_reviews --stages=4
    """
    return Experiment(
        model=Transformer(layers=6, width=384, heads=12, pooling="mean", init_from="minilm"),
        data=Text("movie_sentences"),
        global_batch=32,
        micro_batch=8,
        epochs=3,
        optimization=fine_tuning(5e-5, 32, epochs=3),
    )


def sentiment_lora() -> Experiment:
    """MiniLM as in sentiment_reviews, but trained are low-rank updates and the head (LoRA).

    Trained are 295,682 parameters, where sentiment_reviews trains 22,566,146. One run with seed 0
    took 729 s on 2 busy cores: test accuracy 0.862 (sentiment_reviews: 0.872, TF-IDF: 0.808). No
    setting was chosen on the test sentences.

    ./run.sh prepare --experiment=sentiment_lora
    NP=1 ./run.sh train --experiment=sentiment_lora
    """
    base = sentiment_reviews()
    assert isinstance(base.model, Transformer)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, lora_rank=8),
        optimization=fine_tuning(1e-3, 32, epochs=3),
        frozen=BASE_OF_LORA,
    )


def sentiment_scratch() -> Experiment:
    """A small encoder on the movie sentences without pretraining: shows what pretraining is worth.

    Not yet run to the end.

    ./run.sh prepare --experiment=sentiment_scratch
    NP=2 ./run.sh train --experiment=sentiment_scratch --stages=2
    """
    return Experiment(
        model=Transformer(layers=4, width=256, heads=4, pooling="mean"),
        data=Text("movie_sentences"),
        global_batch=64,
        micro_batch=8,
        epochs=10,
        optimization=fine_tuning(5e-4, 64, epochs=10),
    )


def sentiment_imdb() -> Experiment:
    """MiniLM fine-tuned on 25,000 whole film reviews (TFDS downloads them). Not yet run.

    ./run.sh prepare --experiment=sentiment_imdb
    NP=4 ./run.sh train --experiment=sentiment_imdb --stages=2
    """
    return dataclasses.replace(
        sentiment_reviews(), data=Text("imdb_reviews", max_length=512), micro_batch=4
    )


def sentiment_16gpu() -> Experiment:
    r"""BERT-large on 560,000 Yelp reviews by 16 GPUs: 4 replicas of 4 stages. Not yet run.

    The 24 layers of width 1,024 have 335 million parameters. Weights, gradients and AdamW's two
    moments take 5.4 GB in float32 before any activation, and in 4 stages 1.3 GB a GPU. Why 4
    replicas of 4 stages, and not 1 replica of 16? Both have 128 micro-batches a step. Each of 4
    replicas takes 32, with a bubble of (P - 1) / (M + P - 1) = 3 / 35 = 9 %; one replica would take
    all, with a bubble of 15 / 143 = 10 %. But 24 layers are 6 for each of 4 stages, and cannot be
    divided by 16: the slowest stage would have 2 layers instead of 1.5, and a quarter of the time
    would be lost. The price of 4 replicas is an all-reduce of a quarter of the gradients on each
    GPU; a stage starts it when its last backward pass is done.

    ./run.sh prepare --experiment=sentiment_16gpu --set model.init_from=<folder of BERT-large>
    horovodrun -np 4 -H a:1,b:1,c:1,d:1 python -m app train --experiment=sentiment_16gpu \
        --stages=4 --set model.init_from=<folder>
    """
    return Experiment(
        model=Transformer(layers=24, width=1024, heads=16),
        data=Text("yelp_polarity_reviews", max_length=256, has_baseline=False),
        global_batch=512,
        micro_batch=4,
        epochs=2,
        precision="bfloat16",
        optimization=fine_tuning(2e-5, 512, epochs=2),
    )


def sentence_ratings() -> Experiment:
    """MiniLM fine-tuned to predict how twenty people rated a film sentence on average, -4 to 4.

    Regression on all 10,605 sentences, with Huber's loss. Not yet run to the end.

    ./run.sh prepare --experiment=sentence_ratings
    NP=2 ./run.sh train --experiment=sentence_ratings
    """
    return dataclasses.replace(
        sentiment_reviews(),
        data=Text("movie_sentences", target="rating"),
        objective=Regression("huber", spread=1.8),
    )


def sentence_case() -> Experiment:
    """MiniLM fine-tuned to restore the case of letters: token classification (truecasing).

    Each WordPiece of the lower-cased sentence is classified: lower, Capitalised, UPPER. Not yet run
    to the end.

    ./run.sh prepare --experiment=sentence_case
    NP=2 ./run.sh train --experiment=sentence_case
    """
    return dataclasses.replace(
        sentiment_reviews(),
        model=Transformer(layers=6, width=384, heads=12, pooling="none", init_from="minilm"),
        data=Text("movie_sentences", predicts="case"),
        objective=TokenClassification(),
    )


def sentence_masked() -> Experiment:
    """MiniLM trained on with masked language modelling (BERT's task) on the film sentences.

    Not yet run to the end.

    ./run.sh prepare --experiment=sentence_masked
    NP=2 ./run.sh train --experiment=sentence_masked
    """
    return dataclasses.replace(
        sentence_case(),
        data=Text("movie_sentences", predicts="masked"),
        objective=LanguageModel(),
    )


def gpt_sentences() -> Experiment:
    """A small GPT (4 layers, width 128) that learns to write film sentences, from nothing.

    Causal language modelling over MiniLM's 30,522 WordPieces; `predict` continues a text. Not yet
    run to the end.

    ./run.sh prepare --experiment=gpt_sentences
    NP=2 ./run.sh train --experiment=gpt_sentences --stages=2 --workdir=runs/gpt
    echo "the film is" | ./run.sh predict --workdir=runs/gpt --input=- --temperature=0.8
    """
    return Experiment(
        model=Transformer(
            layers=4, width=128, heads=4, positions=64, norm="pre", pooling="none", causal=True
        ),
        data=Text("movie_sentences", max_length=64, predicts="next"),
        global_batch=32,
        micro_batch=8,
        epochs=5,
        objective=LanguageModel(),
        optimization=fine_tuning(2e-3, 32, epochs=5),
    )


def digits_attributes() -> Experiment:
    """A narrow ResNet-18 that names which of six attributes a scanned digit has: several labels.

    One run with seed 0 took 40 s on 2 busy cores: mean average precision 0.9996, F1 0.991 on the
    test digits (logistic regression on the 64 pixels: 0.970 and 0.909). With SGD at rate 0.05 it
    had reached 0.80 after 10 epochs.

    ./run.sh prepare --experiment=digits_attributes
    NP=2 ./run.sh train --experiment=digits_attributes
    """
    return Experiment(
        model=ResNet(depth=18, width=16, stem="cifar"),
        data=Images("digits_attributes", size=16, augmentation="shift"),
        global_batch=64,
        micro_batch=16,
        epochs=15,
        objective=MultiLabel(),
        optimization=Optimization(
            optimizer=AdamW(), learning_rate=0.003, reference_batch=64, warmup_epochs=5
        ),
    )


def diabetes() -> Experiment:
    """A small perceptron that predicts how diabetes progresses from ten numbers of a patient.

    Regression on scikit-learn's 442 patients (Efron et al., 2004). One run with seed 0 took 12 s:
    mean absolute error 46.5, R2 0.450 on the 88 held out (ridge regression: 46.9).

    ./run.sh prepare --experiment=diabetes
    NP=2 ./run.sh train --experiment=diabetes
    """
    return Experiment(
        model=MLP(width=32, depth=2, dropout=0.1),
        data=Table("diabetes"),
        global_batch=32,
        micro_batch=8,
        epochs=60,
        objective=Regression(centre=152.0, spread=77.0),
        optimization=Optimization(
            optimizer=AdamW(weight_decay=0.1), learning_rate=0.003, reference_batch=32,
            warmup_epochs=2,
        ),
    )  # fmt: skip


def fine_tuning(learning_rate: float, global_batch: int, epochs: float) -> Optimization:
    """Returns BERT's recipe (arXiv:1810.04805, A.3): AdamW, a tenth of warm-up, linear decay."""
    return Optimization(
        optimizer=AdamW(weight_decay=0.01),
        schedule=Linear(),
        learning_rate=learning_rate,
        reference_batch=global_batch,
        warmup_epochs=epochs / 10,
        clip_norm=1.0,
    )


def named() -> dict[str, Callable[[], Experiment]]:
    """Returns the functions of this file that return an experiment, by name."""
    functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {
        name: function
        for name, function in functions
        if function.__module__ == __name__
        and not inspect.signature(function).parameters
        and get_type_hints(function)["return"] is Experiment
    }


def load(reference: str) -> Experiment:
    """Returns the experiment `NAME`, `module:function` or `path/to/file.py:function`.

    Raises:
        UsageError: it does not exist (the message names the nearest), or its code fails.
    """
    source, separator, name = reference.rpartition(":")
    if not separator:
        functions = named()
        if reference not in functions:
            near = difflib.get_close_matches(reference, functions, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UsageError(
                f"no experiment {reference!r}{hint} There are {', '.join(functions)}; your own is "
                "file.py:function or module:function."
            )
        return functions[reference]()
    with _own_code(reference):
        module = _module(source)
        function = getattr(module, name, None)
        if not callable(function):
            functions = {n: f for n, f in vars(module).items() if callable(f)}
            near = difflib.get_close_matches(name, functions, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise UsageError(f"--experiment={reference}: {source} has no function {name!r}{hint}.")
        experiment = function()
    if not isinstance(experiment, Experiment):
        raise UsageError(
            f"--experiment={reference}: {name}() must return an app.config.Experiment, not "
            f"{type(experiment).__name__}."
        )
    return experiment


@contextlib.contextmanager
def _own_code(reference: str) -> Iterator[None]:
    """Turns an exception of the user's own file into one message that names its line."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        loaders = (__file__, importlib.__file__, "<")
        frames = [f for f in extract_tb(error.__traceback__) if not f.filename.startswith(loaders)]
        own = [f for f in frames if f.filename == frames[0].filename]
        line = f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""
        raise UsageError(
            f"--experiment={reference} fails{line} with {type(error).__name__}: "
            f"{' '.join(str(error).split())}; fix it, or give another."
        ) from None


def _module(source: str) -> object:
    """Imports a module, by its name or by the path of its file."""
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except (ModuleNotFoundError, ValueError, TypeError) as error:
            raise UsageError(
                f"--experiment: cannot import {source!r} ({error}): give a path to a .py file, or "
                "a module on PYTHONPATH."
            ) from None
    path = paths.expand_user(source).resolve()
    if not path.is_file():
        raise UsageError(f"--experiment: there is no file {path}.")
    # Under a name of its own: the file may be named as a package of this project or a library.
    name = f"experiment_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look up their module
    sys.path.insert(0, str(path.parent))  # the file's own imports
    specification.loader.exec_module(module)
    return module
