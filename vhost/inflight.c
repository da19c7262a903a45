/* The in-flight region of a split queue (vhost-user specification, "Inflight I/O tracking").
 *
 * Rule 1. Stores happen in the order of the specification's steps, so that death after any of them is told apart:
 *         marked, not used: served again; used, still marked: settled by inflight_recover.
 * Rule 2. The region is untrusted: its indexes and its list are checked before they are followed.
 * Rule 3. Batches are of one: every chain is published by itself. Longer ones, of another back-end, are understood.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "barrier.h"
#include "queue.h"

void inflight_start(struct virtq *queue)
{
	struct virtq_inflight *region = queue->config.inflight;

	region->features = 0;
	region->desc_num = queue->config.num;
	region->last_batch_head = 0;
	region->used_idx = queue->used_idx;
	for (uint32_t i = 0; i < queue->config.num; i++)
		region->desc[i] = (struct virtq_inflight_desc){ 0 };
	memset(queue->config.state->suspicion, 0, sizeof(queue->config.state->suspicion));
	region->version = 1;
	/* A whole region first, then the word that says to recover from it. */
	store_release(&queue->config.state->started, 1);
}

/* Marks are written under pop_lock, and cleared under used_lock before `busy` allows the head again. */
void inflight_mark(struct virtq *queue, uint16_t head)
{
	struct virtq_inflight_desc *desc = &queue->config.inflight->desc[head];

	write_once(&desc->counter, queue->counter++);
	store_release(&desc->inflight, 1);
}

void inflight_unmark(struct virtq *queue, uint16_t head)
{
	store_release(&queue->config.inflight->desc[head].inflight, 0);
}

void inflight_prepare(struct virtq *queue, uint16_t head)
{
	struct virtq_inflight *region = queue->config.inflight;

	write_once(&region->desc[head].next, region->last_batch_head);
	write_once(&region->last_batch_head, head);
}

void inflight_clear(struct virtq *queue, uint16_t head)
{
	struct virtq_inflight *region = queue->config.inflight;

	store_release(&region->desc[head].inflight, 0);
	store_release(&region->used_idx, queue->used_idx);
}

/* The last batch was published, but its marks may stand. -EPROTO when it is no list of that many heads. */
static int settle_last_batch(struct virtq *queue)
{
	struct virtq_inflight *region = queue->config.inflight;
	uint16_t size = queue->used_idx - region->used_idx;
	uint16_t head = region->last_batch_head;

	if (size > queue->config.num)
		return -EPROTO;
	for (; size; size--) {
		if (head >= queue->config.num)
			return -EPROTO;
		region->desc[head].inflight = 0;
		head = region->desc[head].next;
	}
	region->used_idx = queue->used_idx;
	return 0;
}

bool inflight_holds(const struct virtq *queue)
{
	const struct virtq_inflight *region = queue->config.inflight;
	uint16_t count = 0;

	if (region->version != 1 || region->desc_num < queue->config.num || region->used_idx != queue->used_idx)
		return false;
	for (uint32_t head = 0; head < queue->config.num; head++)
		count += region->desc[head].inflight != 0;
	return (uint16_t)(queue->used_idx + count) == queue->config.state->last_avail_idx;
}

static int by_counter(const void *a, const void *b, void *desc)
{
	const struct virtq_inflight_desc *descs = desc;
	uint64_t left = descs[*(const uint16_t *)a].counter;
	uint64_t right = descs[*(const uint16_t *)b].counter;

	return (left > right) - (left < right);
}

int inflight_recover(struct virtq *queue)
{
	struct virtq_inflight *region = queue->config.inflight;
	uint16_t count = 0;
	int err;

	if (region->version != 1 || region->desc_num < queue->config.num)
		return -EPROTO;
	err = settle_last_batch(queue);
	if (err)
		return err;
	for (uint32_t head = 0; head < queue->config.num; head++) {
		if (!region->desc[head].inflight) {
			queue->config.state->suspicion[head] = 0;
			continue;
		}
		queue->resubmit[count++] = head;
		queue->busy[head] = 1;
		if (region->desc[head].counter >= queue->counter)
			queue->counter = region->desc[head].counter + 1;
	}
	qsort_r(queue->resubmit, count, sizeof(queue->resubmit[0]), by_counter, region->desc);
	queue->resubmit_count = count;
	queue->taken = count;
	queue->last_avail = queue->used_idx + count;
	return 0;
}
