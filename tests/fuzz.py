"""Settings of the tests with random inputs: a few in CI, and the same ones each time.

SCALEPROOF_FUZZ_EXAMPLES=20000 pytest -n 2 -k fuzz     20,000 new ones for each test
"""

import os

from hypothesis import HealthCheck, settings

FEW = 60
GIVEN = os.environ.get("SCALEPROOF_FUZZ_EXAMPLES")


def examples(share=1.0):
    """Returns the settings of a test; `share` scales the number of examples, to save time."""
    return settings(
        max_examples=max(1, int(share * int(GIVEN or FEW))),
        derandomize=not GIVEN,
        database=None,
        deadline=None,  # the cores are shared
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
