"""Which of the requests in flight a worker has died of.

Rule 1. All that were in flight are suspects. A next worker serves suspects one at a time, before all else: what it dies
        of then is known. Nothing is condemned but for a death it was alone with.
Rule 2. Accounts are kept here, while no worker runs, and so once for each death (virtq.h, `suspicion`).
"""

from collections.abc import Sequence

from ._virtq import lib
from .inflight import InflightRegions
from .vring import Vring

#: A worker has died of something it did: the second such death, with nothing else being served, condemns.
OWN = int(lib.VIRTQ_SUSPECT)
#: Somebody has killed it, which says little about the requests: it takes eight such deaths in a row.
OUTSIDE = 1


def blame(vrings: Sequence[Vring], inflight: InflightRegions, weight: int) -> bool:
    """Holds the death of the worker that ran `vrings` against what it was serving. Whether one was served alone."""
    served = [vring for vring in vrings if vring.state.started and 0 < vring.num <= lib.VIRTQ_MAX_SIZE]
    alone = [vring for vring in served if 0 < vring.state.alone <= vring.num]
    for vring in alone:
        _raise(vring, vring.state.alone - 1, weight, 0xFF)
        vring.state.alone = 0
    if not alone:
        for vring in served:
            for head in inflight.marks(vring.index, vring.num):
                _raise(vring, head, weight, lib.VIRTQ_SUSPECT)
    return bool(alone)


def _raise(vring: Vring, head: int, weight: int, limit: int) -> None:
    suspicion = vring.state.suspicion
    suspicion[head] = max(suspicion[head], min(limit, suspicion[head] + weight))
