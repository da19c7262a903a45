"""A short run of the ring fuzzer; scripts/fuzz has the long one."""

import pytest

from tests.fuzz import ring


@pytest.mark.parametrize("seed", range(3))
def test_random_rings(seed: int) -> None:
    assert "2000 rings" in ring.run(2000, seed)
