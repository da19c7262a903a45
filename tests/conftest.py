import gc
import signal

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is no finding: it depends on what else the machine does. And what examples share of a
# fixture, each of them leaves as it was.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")
# Which a shell has those ignore that it runs in the background, and all that they start: our daemons.
if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of tests look for descriptors left open, and collect garbage for it: not among all that was collected
    of tests, each time."""
    gc.collect()
    gc.freeze()
