"""A short run of the fuzzer, so that it keeps working; scripts/fuzz makes the long ones."""

from tests.fuzz import serve


def test_a_short_run() -> None:
    assert serve.run(3000, seed=1).startswith("3000 requests")
