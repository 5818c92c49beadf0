"""What holds for all tests.

One thread per test process: the models are tiny, and processes run beside each other. No
test may fail for want of time on a busy machine, hypothesis's own clocks included.
"""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["AGENT_R1_PROGRESS"] = "0"  # lines that come when a machine is busy
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def signal_handlers_stay_as_they_were():
    """A handler that a test leaves behind takes the Ctrl-C of a later one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before
