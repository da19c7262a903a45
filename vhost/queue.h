/* The inside of a queue, for virtq.c (its life and its path), notify.c (kicks and interrupts), hold.c (when the
 * latter are sent), chain.c (descriptors), inflight.c (what survives) and suspect.c (what kills).
 *
 * Lock order: pop_lock, then used_lock. Neither is held across a system call, but for pop_lock across the wait for a kick.
 */
#ifndef VHOST_QUEUE_H
#define VHOST_QUEUE_H

#include <linux/virtio_ring.h>
#include <pthread.h>
#include <stdbool.h>

#include "virtq.h"

/* What a head needs while its chain is in flight. `in` and `out` of the chain lie one after the other in iov. */
struct slot {
	struct virtq_chain chain;
	struct iovec iov[VIRTQ_MAX_CHAIN];
};

struct virtq {
	struct virtq_config config;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	struct slot *slots;          /* num of them, in memory that costs nothing before a head is first used */
	uint32_t taken;              /* chains popped or to be resubmitted; written under pop_lock */
	uint32_t done;               /* those completed, atomic; */
	uint32_t done_alone;         /* and those completed by the only thread */

	pthread_mutex_t pop_lock;    /* held by the leader; protects what follows */
	uint16_t last_avail;         /* index of the next entry to pop */
	uint16_t avail_idx;          /* the driver's index as last read */
	uint16_t resubmit_next;
	uint16_t resubmit_count;
	uint16_t resubmit[VIRTQ_MAX_SIZE]; /* heads a dead worker left in flight, in the order they were taken */
	uint64_t counter;            /* order of taking, for the in-flight region */
	uint16_t rested;             /* last_avail when an unhurried ring was last left alone */
	bool awaited;                /* there were chains with room for a reply, so its driver waits for them */
	uint32_t unpolled;           /* chains popped since `stop` was last polled */
	int epoll;                   /* waits for kick, edge-triggered, and for stop */
	struct polling polling;
	uint32_t held;               /* chains published that the only thread has not told of yet */
	uint64_t held_since;         /* when it published the first of them, nanoseconds */
	struct pace pace;
	uint32_t shared;             /* how sure it is that the driver runs on its core, when let: 0 to 2 * SHARED */

	pthread_mutex_t used_lock;   /* protects what follows, the used ring, and the clearing of marks */
	uint16_t used_idx;           /* ours: the one in the ring is written, never read back */
	uint16_t told_idx;           /* used_idx when the driver's wish for an interrupt was last looked at */

	uint8_t busy[VIRTQ_MAX_SIZE]; /* head in flight: set under pop_lock, cleared under used_lock */
};

/* virtq.c: marks the ring broken, for a reason -errno, which is returned (Rule 4). Called with pop_lock held, or before any
 * thread has come. */
int broken(struct virtq *queue, int err);

/* 1 when there is an entry to pop, 0 when the ring is dry, -EPROTO: it is broken. Called with pop_lock held. */
int avail_ready(struct virtq *queue);
/* Logs a part of the used ring. */
void used_dirty(struct virtq *queue, uint64_t offset, uint64_t len);
/* Where in the used ring the driver finds avail_event (virtio 1.3, section 2.7.10). */
uint64_t avail_event_offset(const struct virtq *queue);

/* Publishes a chain: all of virtq_complete but the interrupt. Whether that is wanted; with `hold` nobody asks. Without `lock`
 * nobody else may complete a chain meanwhile. */
bool settle(struct virtq_chain *chain, uint32_t len, bool hold, bool lock);

/* notify.c: 0; -ENOMEM, also when there are no descriptors left; -EPERM: the kick is nothing one can wait for. waiting_close
 * undoes it. */
int waiting_open(struct virtq *queue);
void waiting_close(struct virtq *queue);
/* Writes an eventfd; -1 is none. */
void signal_fd(int fd);
/* Called on a dry ring, with pop_lock held. 1: there may be an entry; 0: stop; -errno. */
int virtq_wait(struct virtq *queue);
/* Whether stop is readable. */
bool stop_asked(struct virtq *queue);
/* Whether the driver asked to hear of what was published since it was last told. Called with used_lock held. */
bool interrupt_wanted(struct virtq *queue);

/* hold.c: virtq_complete by the only thread: it may hold back what it then has to virtq_tell. */
void complete_alone(struct virtq_chain *chain, uint32_t len);
/* Whether the driver needs our core to come. */
bool shares_our_core(const struct virtq *queue);
/* For a ring that does not run dry: what its chains take is learned all the same. */
void keep_pace(struct virtq *queue);

/* chain.c: fills the slot of `head` from the descriptor table. 0; -EPROTO for a rule broken, -EFAULT for an indirect
 * table outside memory, -ENOMEM, -E2BIG for more than VIRTQ_MAX_CHAIN buffers. */
int chain_read(struct virtq *queue, uint16_t head);
/* What follows of its failure: the ring is broken, but not since this worker is short of memory. Returns `err`. */
int unreadable(struct virtq *queue, int err);

/* inflight.c. Starts from an empty region, or from what a dead worker left; -EPROTO when that makes no sense. */
void inflight_start(struct virtq *queue);
int inflight_recover(struct virtq *queue);
/* Whether what a worker left on purpose is of this ring still: a driver may have begun a new one at its place. */
bool inflight_holds(const struct virtq *queue);
/* The mark of a head, before it is served or found to be no chain; and around the moment it becomes used. */
void inflight_mark(struct virtq *queue, uint16_t head);
void inflight_unmark(struct virtq *queue, uint16_t head);
void inflight_prepare(struct virtq *queue, uint16_t head);
void inflight_clear(struct virtq *queue, uint16_t head);

#endif
