import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of tests look for descriptors left open, and collect garbage for it: not among all that was collected
    of tests, each time."""
    gc.collect()
    gc.freeze()
