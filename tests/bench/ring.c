/* The split virtqueue, driver side (virtio 1.3, section 2.7), with as few instructions as a guest's. */
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "barrier.h"

/* Looks at the used index before a spinning driver lets its caller see whether a signal came: a few milliseconds. */
#define SPINS 10000000

static struct vring_avail *avail(const struct driver_queue *queue)
{
	return at(queue, queue->avail);
}

static struct vring_used *used(const struct driver_queue *queue)
{
	return at(queue, queue->used);
}

static uint16_t *avail_event(const struct driver_queue *queue)
{
	return at(queue, queue->used + sizeof(struct vring_used) + queue->num * sizeof(struct vring_used_elem));
}

static uint16_t descriptors_wanted(const struct driver_queue *queue, const struct driver_step *step)
{
	return queue->indirect && step->descriptors > 1 ? 1 : step->descriptors;
}

/* Fills a chain of the ring's own descriptors; returns its head. */
static uint16_t chain_direct(struct driver_queue *queue, const struct driver_step *step)
{
	struct vring_desc *ring = at(queue, queue->desc);
	const struct vring_desc *table = at(queue, step->table);
	uint16_t head = queue->free[--queue->free_count];
	uint16_t index = head;

	for (uint32_t i = 0; i < step->descriptors; i++) {
		ring[index] = table[i];
		if (i + 1 < step->descriptors) {
			ring[index].next = queue->free[--queue->free_count];
			index = ring[index].next;
		}
	}
	return head;
}

static uint16_t chain_indirect(struct driver_queue *queue, const struct driver_step *step)
{
	struct vring_desc *ring = at(queue, queue->desc);
	uint16_t head = queue->free[--queue->free_count];

	ring[head] = (struct vring_desc){
		.addr = step->table,
		.len = step->descriptors * sizeof(struct vring_desc),
		.flags = VRING_DESC_F_INDIRECT,
	};
	return head;
}

/* Gives back the descriptors of a chain that was used. */
static void chain_free(struct driver_queue *queue, uint16_t head)
{
	const struct vring_desc *ring = at(queue, queue->desc);
	uint16_t index = head;

	for (uint16_t left = queue->taken[head]; left; left--) {
		queue->free[queue->free_count++] = index;
		index = ring[index].next;
	}
	queue->taken[head] = 0;
}

static void kick(struct driver_queue *queue)
{
	uint64_t one = 1;
	uint16_t old = queue->kicked;
	bool wanted;

	/* Pairs with the device's fence between its store of avail_event or flags and its load of avail.idx. */
	full_fence();
	queue->kicked = queue->index;
	if (queue->event_idx)
		wanted = vring_need_event(read_once(avail_event(queue)), queue->index, old);
	else
		wanted = !(read_once(&used(queue)->flags) & VRING_USED_F_NO_NOTIFY);
	/* A full counter already says what we would say. */
	if (wanted && write(queue->kick, &one, sizeof(one)) < 0)
		return;
}

int ring_enqueue(struct driver_queue *queue, const struct driver_step *step, uint32_t lane)
{
	uint16_t wanted = descriptors_wanted(queue, step);
	uint16_t head;

	if (wanted > queue->free_count)
		return -ENOSPC;
	head = wanted == step->descriptors ? chain_direct(queue, step) : chain_indirect(queue, step);
	queue->taken[head] = wanted;
	queue->lane[head] = lane;
	write_once(&avail(queue)->ring[queue->index & (queue->num - 1)], head);
	queue->index++;
	/* Pairs with the device's acquire load: what a chain points to is seen with it. */
	store_release(&avail(queue)->idx, queue->index);
	kick(queue);
	return 0;
}

static bool dry(const struct driver_queue *queue)
{
	/* Pairs with the device's release store, after the reply and the used element. */
	return load_acquire(&used(queue)->idx) == queue->last_used;
}

void ring_want_interrupt(struct driver_queue *queue, bool wanted)
{
	if (!queue->event_idx)
		write_once(&avail(queue)->flags, wanted ? 0 : VRING_AVAIL_F_NO_INTERRUPT);
	else if (wanted)
		write_once(&avail(queue)->ring[queue->num], queue->last_used);
}

int ring_take(struct driver_queue *queue, uint32_t *lane, uint32_t *len)
{
	struct vring_used_elem elem;

	if (dry(queue))
		return 0;
	copy_once(&elem, &used(queue)->ring[queue->last_used & (queue->num - 1)], sizeof(elem));
	if (elem.id >= queue->num || !queue->taken[elem.id])
		return -EPROTO;
	chain_free(queue, elem.id);
	queue->last_used++;
	*lane = queue->lane[elem.id];
	*len = elem.len;
	return 1;
}

static bool all_dry(const struct driver_queue *queues, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (!dry(&queues[i]))
			return false;
	return true;
}

static void want_interrupts(struct driver_queue *queues, uint32_t count, bool wanted)
{
	for (uint32_t i = 0; i < count; i++)
		ring_want_interrupt(&queues[i], wanted);
}

int ring_wait(struct driver_queue *queues, uint32_t count, bool spin)
{
	uint64_t calls;
	int ret = 0;

	if (spin) {
		for (unsigned i = 0; i < SPINS; i++)
			if (!all_dry(queues, count))
				return 0;
		return -EINTR;
	}
	want_interrupts(queues, count, true);
	/* Pairs with the device's fence between its store of used.idx and its load of used_event or flags. */
	full_fence();
	if (all_dry(queues, count) && read(queues->call, &calls, sizeof(calls)) < 0)
		ret = -errno;
	want_interrupts(queues, count, false);
	return ret;
}

void ring_open(struct driver_queue *queue)
{
	queue->kicked = queue->last_used = queue->index;
	queue->free_count = 0;
	for (uint32_t i = queue->num; i; i--)
		queue->free[queue->free_count++] = i - 1;
	memset(queue->taken, 0, sizeof(queue->taken));
	ring_want_interrupt(queue, false);
}
