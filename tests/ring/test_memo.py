"""The memory of the handler's that each head has, in whatever worker."""

from collections.abc import Callable

from tests.ring.ring import Chain, Ring
from vhost._virtq import ffi

Make = Callable[..., Ring]
SIZE = 24


def test_each_head_has_its_own(ring: Make) -> None:
    r = ring(8)
    memos = r.record("uint8_t *", 0xC000)
    r.config.memos, r.config.memo_size = memos, SIZE
    seen = []

    def handler(chain: Chain) -> bytes:
        memo = ffi.cast("uint8_t *", chain.chain.memo)
        seen.append((memo - memos) // SIZE)
        memo[0] += 1
        return b""

    r.start(handler)
    heads = [r.driver.add([b"x"], [1]) for _ in range(4)]
    r.driver.kick()
    for head in heads:
        r.driver.wait(head)
    assert seen == heads
    assert {head for head in range(8) if memos[SIZE * head]} == set(heads)


def test_there_may_be_none(ring: Make) -> None:
    seen = []
    r = ring(8)
    r.start(lambda chain: seen.append(chain.chain.memo) or b"")
    r.driver.request([b"x"], [1])
    assert seen == [ffi.NULL]
