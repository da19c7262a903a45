/* The chains that a worker may have died of, served before all others and one at a time (blame.py says what for).
 *
 * Rule 1. `alone` names a head from before the first byte of its chain is looked at until it is served, or deferred:
 *         a death in between is held against it, and against no other.
 */
#include <errno.h>
#include <string.h>

#include "barrier.h"
#include "queue.h"

_Static_assert(sizeof(((struct virtq_state *)0)->suspicion) == VIRTQ_MAX_SIZE, "one for each head");

/* Where in `resubmit` the next suspect is; its end for none. */
static uint16_t next_suspect(const struct virtq *queue)
{
	uint16_t at = 0;

	while (at < queue->resubmit_count && queue->config.state->suspicion[queue->resubmit[at]] < VIRTQ_SUSPECT)
		at++;
	return at;
}

int virtq_try_suspect(struct virtq *queue, virtq_handler handler, virtq_handler refuse, void *opaque)
{
	struct virtq_state *state = queue->config.state;
	uint16_t at = next_suspect(queue);
	uint16_t head = queue->resubmit[at];
	struct virtq_chain *chain = &queue->slots[head].chain;
	int64_t len;
	int ret;

	if (state->broken)
		return -(int)state->broken;
	if (at == queue->resubmit_count)
		return 0;
	/* Before any byte of the chain is looked at: that may be what kills. */
	store_release(&state->alone, head + 1);
	ret = state->suspicion[head] < VIRTQ_UNREADABLE ? chain_read(queue, head) : -EFAULT;
	if (!ret) {
		chain->replay = 1;
		len = (state->suspicion[head] < VIRTQ_CONDEMNED ? handler : refuse)(opaque, chain);
		if (len >= 0)
			virtq_complete(chain, len);
		else if (len != VIRTQ_DEFERRED)
			ret = (int)len;
	}
	if (ret) {
		unreadable(queue, ret);
	} else {
		memmove(queue->resubmit + at, queue->resubmit + at + 1,
			(--queue->resubmit_count - at) * sizeof(queue->resubmit[0]));
		write_once(&state->suspicion[head], 0);
	}
	/* Release: it is not alone any more once nothing is held against it, or its ring is broken. */
	store_release(&state->alone, 0);
	return ret ? ret : 1;
}
