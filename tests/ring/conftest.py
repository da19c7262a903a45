from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.ring.ring import Ring


@pytest.fixture
def ring() -> Iterator[Callable[..., Ring]]:
    """Makes rings, and closes them after the test."""
    made: list[Ring] = []

    def make(*args: Any, **options: Any) -> Ring:
        made.append(Ring(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
