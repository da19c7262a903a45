"""Fixtures of the ops' tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.mount import Mount, share
from tests.ops.windowed import Worker
from vfsd.settings import Settings


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A mount of an empty directory, everything on; no op may fail in a way nobody foresaw."""
    with share(tmp_path, Settings(xattr=True, privileged=os.geteuid() == 0)) as mount:
        yield mount


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.message for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.window.clear()
    assert worker.files() == []
    worker.padded.close()
