"""Settings of the tests that make up their inputs: few of them in CI, and the same ones each time.

SCALEPROOF_FUZZ_EXAMPLES=20000 pytest -n 2 -k fuzz     so many others, of each
"""

import os

from hypothesis import HealthCheck, settings

FEW = 60
GIVEN = os.environ.get("SCALEPROOF_FUZZ_EXAMPLES")


def examples(share=1.0):
    """Settings of a test; `share`: of the number of examples, for one whose examples take long."""
    return settings(
        max_examples=max(1, int(share * int(GIVEN or FEW))),
        derandomize=not GIVEN,
        database=None,
        deadline=None,  # the cores are shared
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
