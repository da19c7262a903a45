"""Which rows are called slower or faster, and which are not."""

import itertools
import math
import random

import pytest

from tests.guestbench.paired import CONFIDENCE, LEAST_ROUNDS, compare, left_out

#: Of printed tables of the signed-rank test, two-sided at 5 %.
PRINTED = {6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 11: 10, 12: 13, 16: 29, 20: 52}


def noisy(source: random.Random, rounds: int, scale: float = 1.0) -> list[float]:
    return [scale * math.exp(source.gauss(0, 0.1)) for _ in range(rounds)]


def test_what_is_left_out_is_what_is_printed() -> None:
    assert {rounds: left_out(rounds) for rounds in PRINTED} == PRINTED
    assert min(PRINTED) == LEAST_ROUNDS and left_out(LEAST_ROUNDS - 1) is None


@pytest.mark.parametrize("rounds", [6, 8, 10])
def test_equal_daemons_are_level_in_95_of_100_tables(rounds: int) -> None:
    # Of equal daemons each round's ratio could be the other way round: all these ways are equally likely.
    apart = [1.01**number for number in range(1, rounds + 1)]
    verdicts = [
        compare([ratio**sign for ratio, sign in zip(apart, signs, strict=True)], [1.0] * rounds, rate=True).verdict
        for signs in itertools.product((1, -1), repeat=rounds)
    ]
    wrong = 1 - verdicts.count("level") / len(verdicts)
    assert (1 - CONFIDENCE) / 2 < wrong <= 1 - CONFIDENCE
    assert verdicts.count("slower") == verdicts.count("faster")


def test_what_is_quicker_is_above_1() -> None:
    source = random.Random(1)
    quick, slow = noisy(source, 8, 2.0), noisy(source, 8)
    rates = compare(quick, slow, rate=True)
    assert 1.7 < rates.low < rates.ratio < rates.high < 2.4 and rates.verdict == "faster"
    assert compare(quick, slow, rate=False).verdict == "slower"
    back = compare(slow, quick, rate=True)
    assert back.verdict == "slower" and (1 / back.ratio, 1 / back.high, 1 / back.low) == pytest.approx(tuple(rates))


def test_noise_that_a_round_has_for_both_is_none() -> None:
    source = random.Random(2)
    common = [source.uniform(1, 9) for _ in range(8)]
    ours = [each * source.uniform(0.89, 0.91) for each in common]
    assert compare(ours, common, rate=True).verdict == "slower"


def test_a_round_that_was_disturbed_decides_nothing() -> None:
    ours = [1.0, 1.02, 0.99, 1.01, 0.98, 1.03, 0.97, 1.0]
    theirs = [1.0, 1.0, 1.01, 0.99, 1.0, 1.01, 1.02, 0.99]
    ratio = compare(ours, theirs, rate=True).ratio
    disturbed = compare([ours[0] / 5, *ours[1:]], theirs, rate=True)
    assert disturbed.verdict == "level" and disturbed.ratio == pytest.approx(ratio, abs=0.02)


def test_too_few_rounds_tell_nothing() -> None:
    comparison = compare([2.0] * 5, [1.0] * 5, rate=True)
    assert comparison.ratio == 2 and comparison.verdict == "level" and math.isinf(comparison.high)
