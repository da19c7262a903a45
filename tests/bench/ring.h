/* The inside of the driver, for ring.c (the split virtqueue), reply.c (what replies say) and driver.c (the lanes). */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include <linux/virtio_ring.h>
#include <stdbool.h>

#include "driver.h"

/* Guest memory. */
static inline void *at(const struct driver_queue *queue, uint64_t addr)
{
	return queue->memory + addr;
}

/* Nothing is in flight, and interrupts are off. */
void ring_open(struct driver_queue *queue);

/* Publishes a chain for a lane, and kicks if the device wants to be. 0, or -ENOSPC. */
int ring_enqueue(struct driver_queue *queue, const struct driver_step *step, uint32_t lane);

/* Takes the next used chain: 1, and whose it was and the used length; 0 when there is none; -EPROTO when it is none that
 * was in flight. */
int ring_take(struct driver_queue *queue, uint32_t *lane, uint32_t *len);

/* Returns when something may have been used on any of `count` rings that have one `call`: 0, or -EINTR. */
int ring_wait(struct driver_queue *queues, uint32_t count, bool spin);

/* With EVENT_IDX an old used_event asks for no interrupt, until the index comes round. */
void ring_want_interrupt(struct driver_queue *queue, bool wanted);

/* Notes what was wrong; returns -EBADMSG. */
int failed(struct driver_run *run, uint32_t lane, uint32_t what, int64_t expected, int64_t got);

/* Before a request with data is sent: a reply that brings nothing must not find what the last one brought. */
void reply_prepare(const struct driver_run *run, const struct driver_lane *lane, const struct driver_step *step);

/* Checks a reply of `len` bytes, and takes what is in it. 0, or -EBADMSG. */
int reply_take(struct driver_run *run, uint32_t lane, uint32_t len);

#endif
