"""One connection for a test, which must leave no descriptor behind."""

import gc
from collections.abc import Iterator

import pytest

from tests.vhost.connection import Connection, descriptors


@pytest.fixture
def connection() -> Iterator[Connection]:
    before = descriptors()
    connection = Connection()
    yield connection
    connection.close()
    vars(connection).clear()
    if descriptors() - before:
        gc.collect()  # a mapping of Python's has a descriptor, and lives until it is collected
    assert not descriptors() - before
