"""One connection for a test, which must leave no descriptor behind; and a memory table."""

import gc
from collections.abc import Iterator

import pytest

from tests.vhost.connection import Connection, descriptors
from tests.vhost.regions import MAPPED, Quiesce, is_mapping
from vhost.memory import GuestMemory, table_arena


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


@pytest.fixture
def quiesce() -> Quiesce:
    return Quiesce()


@pytest.fixture
def memory(quiesce: Quiesce) -> Iterator[GuestMemory]:
    memory = GuestMemory(table_arena(), quiesce, is_mapping)
    yield memory
    memory.clear()
    MAPPED.clear()
