/* The split virtqueue, device side (virtq.h has the rules): its life, and the path of a chain through it.
 *
 * Four accesses are ordered against the driver, and no others. Each is marked "Ordered point" below:
 *
 *   pop        acquire load of avail.idx, before the entry, the descriptors and what they point to
 *   complete   release store of used.idx, after the reply and the used element
 *   interrupt? full fence between used.idx and the driver's used_event or flags
 *   sleep?     full fence between our avail_event or flags and avail.idx
 */
#include "virtq.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "barrier.h"
#include "queue.h"

/* Chains popped in a row from a ring that never runs dry before `stop`, and the time, are looked at. */
#define STOP_INTERVAL 32
/* Chains with more bytes than this may take long: what is held back is told of first. */
#define HOLD_BYTES 32768

void used_dirty(struct virtq *queue, uint64_t offset, uint64_t len)
{
	if (queue->config.log_used)
		memory_dirty(queue->config.memory, queue->config.log_addr + offset, len);
}

int broken(struct virtq *queue, int err)
{
	if (!queue->config.state->broken) {
		write_once(&queue->config.state->broken, -err);
		write_once(&queue->taken, queue->taken - (queue->resubmit_count - queue->resubmit_next));
		queue->resubmit_next = queue->resubmit_count;
		signal_fd(queue->config.err);
	}
	return err;
}

uint64_t avail_event_offset(const struct virtq *queue)
{
	return offsetof(struct vring_used, ring) + queue->config.num * sizeof(struct vring_used_elem);
}

static uint64_t used_size(const struct virtq *queue)
{
	return avail_event_offset(queue) + (queue->config.event_idx ? sizeof(uint16_t) : 0);
}

/* The ring parts, with the event words only when they are there. */
static int map_ring(struct virtq *queue)
{
	const struct virtq_config *config = &queue->config;
	uint64_t avail_size = sizeof(struct vring_avail) + config->num * sizeof(uint16_t) +
			      (config->event_idx ? sizeof(uint16_t) : 0);

	queue->desc = memory_user(config->memory, config->desc_addr, config->num * sizeof(struct vring_desc));
	queue->avail = memory_user(config->memory, config->avail_addr, avail_size);
	queue->used = memory_user(config->memory, config->used_addr, used_size(queue));
	return queue->desc && queue->avail && queue->used ? 0 : memory_missing(config->memory);
}

static bool config_valid(const struct virtq_config *config)
{
	return config->num && config->num <= VIRTQ_MAX_SIZE && !(config->num & (config->num - 1)) &&
	       config->desc_addr % VRING_DESC_ALIGN_SIZE == 0 && config->avail_addr % VRING_AVAIL_ALIGN_SIZE == 0 &&
	       config->used_addr % VRING_USED_ALIGN_SIZE == 0;
}

/* Takes up the ring where `state` says it stands. */
static void resume(struct virtq *queue)
{
	struct virtq_state *state = queue->config.state;

	queue->used_idx = read_once(&queue->used->idx);
	queue->last_avail = queue->used_idx;
	if (state->suspended && !inflight_holds(queue))
		state->started = 0;
	state->suspended = 0;
	if (!state->started) {
		queue->last_avail = state->last_avail_idx;
		inflight_start(queue);
	} else if (state->broken || inflight_recover(queue) < 0) {
		broken(queue, -EPROTO);
	} else {
		/* What the dead worker stored it may not have logged, nor have told the driver. */
		used_dirty(queue, 0, used_size(queue));
		signal_fd(queue->config.call);
	}
	queue->told_idx = queue->used_idx;
	queue->avail_idx = queue->last_avail;
	queue->unpolled = STOP_INTERVAL;
}

struct virtq *virtq_new(const struct virtq_config *config, int *error)
{
	struct virtq *queue = calloc(1, sizeof(*queue));

	*error = -ENOMEM;
	if (!queue)
		return NULL;
	queue->config = *config;
	*error = config_valid(config) ? map_ring(queue) : -EINVAL;
	if (!*error)
		*error = waiting_open(queue);
	if (*error) {
		free(queue);
		return NULL;
	}
	queue->slots = mmap(NULL, config->num * sizeof(struct slot), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (queue->slots == MAP_FAILED) {
		*error = -ENOMEM;
		waiting_close(queue);
		free(queue);
		return NULL;
	}
	pthread_mutex_init(&queue->pop_lock, NULL);
	pthread_mutex_init(&queue->used_lock, NULL);
	queue->polling.limit = config->poll_ns < POLLING_MAX ? config->poll_ns : POLLING_MAX;
	resume(queue);
	return queue;
}

void virtq_free(struct virtq *queue)
{
	if (!queue)
		return;
	waiting_close(queue);
	munmap(queue->slots, queue->config.num * sizeof(struct slot));
	pthread_mutex_destroy(&queue->pop_lock);
	pthread_mutex_destroy(&queue->used_lock);
	free(queue);
}

/* Reads avail.idx when the entries known of are used up. */
int avail_ready(struct virtq *queue)
{
	if (queue->avail_idx != queue->last_avail)
		return 1;
	/* Ordered point "pop": pairs with the driver's write barrier between its descriptors and ring entry and its
	 * store of avail.idx (virtio 1.3, 2.7.13.3). What it stored before the index, we see after it. */
	queue->avail_idx = load_acquire(&queue->avail->idx);
	if ((uint16_t)(queue->avail_idx - queue->last_avail) > queue->config.num)
		return broken(queue, -EPROTO);
	return queue->avail_idx != queue->last_avail;
}

/* A head may not be made available again before it was used. */
static bool head_busy(struct virtq *queue, uint16_t head)
{
	if (!load_acquire(&queue->busy[head]))
		return false;
	/* The driver may have seen used.idx, and given the head back to us, before its completion cleared the mark:
	 * let that completion leave the used lock. */
	pthread_mutex_lock(&queue->used_lock);
	pthread_mutex_unlock(&queue->used_lock);
	return load_acquire(&queue->busy[head]);
}

/* A chain to serve: 1, 0 when the ring is dry, -errno when it is broken. Those a dead worker left come first; they are
 * marked and counted already. */
static int virtq_pop(struct virtq *queue, struct virtq_chain **chain)
{
	bool replay = queue->resubmit_next < queue->resubmit_count;
	uint16_t head;
	int ret;

	if (replay) {
		head = queue->resubmit[queue->resubmit_next];
	} else {
		ret = avail_ready(queue);
		if (ret <= 0)
			return ret;
		head = read_once(&queue->avail->ring[queue->last_avail & (queue->config.num - 1)]);
		if (head >= queue->config.num || head_busy(queue, head))
			return broken(queue, -EPROTO);
	}
	/* Before a byte of it is looked at: whom that kills has died of this chain. */
	if (!replay)
		inflight_mark(queue, head);
	ret = chain_read(queue, head);
	if (ret) {
		if (!replay)
			inflight_unmark(queue, head);
		return unreadable(queue, ret);
	}
	*chain = &queue->slots[head].chain;
	(*chain)->replay = replay;
	queue->awaited |= (*chain)->out_count != 0;
	if (replay) {
		queue->resubmit_next++;
		return 1;
	}
	queue->last_avail++;
	queue->busy[head] = 1;
	write_once(&queue->taken, queue->taken + 1);
	(*chain)->alone = queue->avail_idx == queue->last_avail && virtq_pending(queue) == 1;
	write_once(&queue->config.state->popped, queue->config.state->popped + 1);
	return 1;
}

static bool stop_polled(struct virtq *queue)
{
	if (queue->resubmit_next < queue->resubmit_count || queue->unpolled++ < STOP_INTERVAL)
		return false;
	queue->unpolled = 0;
	keep_pace(queue);
	return stop_asked(queue);
}

/* Leads: waits and pops. Called with pop_lock held. 1: a chain; 0: stop; -errno. */
static int virtq_lead(struct virtq *queue, struct virtq_chain **chain)
{
	int ret = 1;

	if (queue->config.state->broken)
		ret = -(int)queue->config.state->broken;
	else if (stop_polled(queue))
		ret = 0;
	while (ret > 0) {
		ret = virtq_pop(queue, chain);
		if (ret)
			break;
		ret = virtq_wait(queue);
	}
	return ret;
}

/* Puts a head on the used ring, and settles its mark. Called with used_lock held. */
static void publish(struct virtq *queue, uint16_t head, uint32_t len)
{
	uint16_t slot = queue->used_idx & (queue->config.num - 1);
	struct vring_used_elem *elem = &queue->used->ring[slot];

	inflight_prepare(queue, head);
	write_once(&elem->id, head);
	write_once(&elem->len, len);
	queue->used_idx++;
	/* Ordered point "complete": pairs with the driver's read barrier between its load of used.idx and its reading
	 * of the element and the reply (virtio 1.3, 2.7.14). */
	store_release(&queue->used->idx, queue->used_idx);
	inflight_clear(queue, head);
	/* Release: pairs with head_busy. The mark is cleared before the head can be taken, and marked, again. */
	store_release(&queue->busy[head], 0);
	used_dirty(queue, offsetof(struct vring_used, ring) + slot * sizeof(*elem), sizeof(*elem));
	used_dirty(queue, offsetof(struct vring_used, idx), sizeof(uint16_t));
	write_once(&queue->config.state->completed, queue->config.state->completed + 1);
}

/* Logs the first `len` bytes of `out`. The driver assumes nothing about those after (virtio 1.3, 2.7.8.3). */
static void reply_dirty(struct virtq *queue, const struct virtq_chain *chain, uint64_t len)
{
	for (uint32_t i = 0; len && i < chain->out_count; i++) {
		uint64_t part = chain->out[i].iov_len < len ? chain->out[i].iov_len : len;

		memory_dirty_host(queue->config.memory, chain->out[i].iov_base, part);
		len -= part;
	}
}

bool settle(struct virtq_chain *chain, uint32_t len, bool hold, bool lock)
{
	struct virtq *queue = chain->queue;
	bool wanted = false;

	if (len > chain->out_len)
		len = chain->out_len;
	/* Before the used element: once that is there, another worker does not serve the chain, nor log it, again. */
	reply_dirty(queue, chain, len);
	if (lock)
		pthread_mutex_lock(&queue->used_lock);
	if (!read_once(&queue->config.state->broken)) {
		publish(queue, chain->head, len);
		wanted = !hold && interrupt_wanted(queue);
	}
	if (lock)
		pthread_mutex_unlock(&queue->used_lock);
	return wanted;
}

void virtq_complete(struct virtq_chain *chain, uint32_t len)
{
	struct virtq *queue = chain->queue;

	if (settle(chain, len, false, true))
		signal_fd(queue->config.call);
	/* Last: at 0 the worker may end. */
	fetch_add(&queue->done, 1);
}

/* One of several threads: each leads in turn, and the others queue up behind it. */
static int run_among(struct virtq *queue, virtq_handler handler, void *opaque)
{
	struct virtq_chain *chain = NULL;
	int64_t len;
	int ret;

	while (true) {
		pthread_mutex_lock(&queue->pop_lock);
		ret = virtq_lead(queue, &chain);
		pthread_mutex_unlock(&queue->pop_lock);
		if (ret <= 0)
			return ret;
		len = handler(opaque, chain);
		if (len != VIRTQ_DEFERRED)
			virtq_complete(chain, len);
	}
}

/* The only thread leads for good, and may tell the driver of several chains at once. */
static int run_alone(struct virtq *queue, virtq_handler handler, void *opaque)
{
	struct virtq_chain *chain = NULL;
	int64_t len;
	int ret;

	pthread_mutex_lock(&queue->pop_lock);
	while ((ret = virtq_lead(queue, &chain)) > 0) {
		if (chain->in_len + chain->out_len > HOLD_BYTES)
			virtq_tell(queue);
		len = handler(opaque, chain);
		if (len == VIRTQ_DEFERRED)
			virtq_tell(queue);
		else
			complete_alone(chain, len);
	}
	pthread_mutex_unlock(&queue->pop_lock);
	virtq_tell(queue);
	return ret;
}

int virtq_run(struct virtq *queue, virtq_handler handler, void *opaque)
{
	return (queue->config.threads == 1 ? run_alone : run_among)(queue, handler, opaque);
}

uint32_t virtq_pending(struct virtq *queue)
{
	/* Acquire, and before `taken`: whoever completes a chain counted it as taken first. */
	uint32_t done = load_acquire(&queue->done) + load_acquire(&queue->done_alone);

	return load_acquire(&queue->taken) - done;
}

void virtq_park(struct virtq *queue)
{
	queue->config.state->last_avail_idx = queue->last_avail;
	/* The index first, then the word that says it holds. */
	store_release(&queue->config.state->started, 0);
}

void virtq_suspend(struct virtq *queue)
{
	queue->config.state->last_avail_idx = queue->last_avail;
	store_release(&queue->config.state->suspended, 1);
}
