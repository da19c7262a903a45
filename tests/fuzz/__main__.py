"""python -m tests.fuzz COUNT [SEED]: both fuzzers, in pieces that each name the seed that repeats them."""

import random
import sys
import time

from tests.fuzz import ring, serve

PIECE = 50_000


def main() -> None:
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else random.SystemRandom().randrange(1 << 31)
    begun = time.monotonic()
    for fuzzer in (ring, serve):
        name = fuzzer.__name__.rpartition(".")[2]
        for number, first in enumerate(range(0, count, PIECE)):
            size = min(PIECE, count - first)
            said = fuzzer.run(size, seed + number)
            elapsed = time.monotonic() - begun
            print(f"fuzz: {name} {first + size}/{count}, seed {seed + number}, {elapsed:.0f} s: {said}", flush=True)


main()
