"""What holds for all tests.

One thread per test process: the models are tiny, and processes run beside each other. No
test may fail for want of time on a busy machine, hypothesis's own clocks included.
"""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
