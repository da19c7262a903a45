/* The split-virtqueue engine, device side (virtio 1.3, section 2.7).
 *
 * Rule 1. Only virtq.c and notify.c touch a ring. Whatever the driver can change is read once.
 * Rule 2. A chain is completed by one function and by nothing else (settle): reply bytes, used element, used index, dirty
 *         log and in-flight mark are settled there. The interrupt may come for several.
 * Rule 3. The engine makes no threads and takes those it is lent: several may run the same queue.
 * Rule 4. A ring that breaks the rules is marked broken, its error eventfd is written, and nothing else is touched.
 */
#ifndef VHOST_VIRTQ_H
#define VHOST_VIRTQ_H

#include <stdint.h>
#include <sys/uio.h>

#include "memory.h"
#include "pace.h"
#include "polling.h"

#define VIRTQ_MAX_SIZE 1024
/* A chain may hold this many descriptors, and as many buffers after translation (IOV_MAX). */
#define VIRTQ_MAX_CHAIN 1024

/* Returned by a handler that will call virtq_complete itself, later and from any thread of the worker. */
#define VIRTQ_DEFERRED INT64_MIN

#define VIRTQ_FAULT_IN 1
#define VIRTQ_FAULT_OUT 2

struct virtq;

/* One descriptor chain. It lives in its queue, one per head, from pop to completion. */
struct virtq_chain {
	struct virtq *queue;
	struct iovec *in;     /* written by the driver */
	struct iovec *out;    /* to be written by the device */
	uint32_t in_count;
	uint32_t out_count;
	uint64_t in_len;      /* bytes */
	uint64_t out_len;
	uint16_t head;
	uint16_t replay;      /* 1: was in flight in a worker that died, so it may have been served before */
	uint32_t alone;       /* 1: when it was taken there was nothing else in the ring, and nothing behind it */
	uint32_t fault;       /* VIRTQ_FAULT_*: `in` or `out` ends before a buffer that lies outside guest memory */
	struct virtq_chain *next; /* the handler's own, while the chain is deferred */
	void *memo;           /* of its head: what the handler has kept there, also in a worker that died; or NULL */
};

/* Serves a chain and returns the number of bytes written to `out`, or VIRTQ_DEFERRED. It cannot fail: an error is a
 * reply of the protocol above. */
typedef int64_t (*virtq_handler)(void *opaque, struct virtq_chain *chain);

/* How much the deaths of workers speak against a chain that was in flight (blame.py): one who is suspect is served alone,
 * one who is condemned is refused, and one whose refusal kills has made its ring unreadable. */
#define VIRTQ_SUSPECT 4
#define VIRTQ_CONDEMNED 8
#define VIRTQ_UNREADABLE 12

/* What of a ring outlives a worker: one record of an arena, plain data. `started` 0: last_avail_idx is what the
 * front-end set and the in-flight region starts empty. 1: recover from the in-flight region. */
struct virtq_state {
	uint32_t started;
	uint16_t last_avail_idx; /* valid while `started` is 0, that is before the first and after a clean stop */
	uint16_t reserved;
	uint32_t broken;         /* 0, or the errno that broke the ring */
	uint32_t suspended;      /* `started` is 1, and the worker left what is in flight on purpose: last_avail_idx holds */
	/* Counters, never reset by a worker. */
	uint32_t kicks;          /* that woke one */
	uint32_t polls_paid;     /* dry spells that were watched until the driver came (polling.h) */
	uint64_t popped;
	uint64_t completed;
	uint64_t interrupts;
	uint32_t alone;          /* head + 1 of the suspect that is being served, and nothing besides; 0: none */
	uint32_t polls_failed;   /* those watched in vain */
	uint8_t suspicion[1024]; /* of the heads in flight (VIRTQ_MAX_SIZE); raised while no worker runs, 0 for a new chain */
};

/* The in-flight region of one split queue (vhost-user specification, "Inflight I/O tracking"). */
struct virtq_inflight_desc {
	uint8_t inflight;
	uint8_t padding[5];
	uint16_t next;
	uint64_t counter;
};

struct virtq_inflight {
	uint64_t features;
	uint16_t version;        /* 1 once initialised, 0 in a fresh region */
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct virtq_inflight_desc desc[];
};

/* Everything fixed at the worker's start. Addresses are front-end virtual ones, as in SET_VRING_ADDR. */
struct virtq_config {
	struct memory *memory;
	struct virtq_state *state;
	struct virtq_inflight *inflight; /* room for `num` entries */
	void *memos;                     /* the handler's, `num` times memo_size bytes of an arena, or NULL */
	uint64_t features;               /* negotiated virtio features */
	uint64_t desc_addr;
	uint64_t avail_addr;
	uint64_t used_addr;
	uint64_t log_addr;               /* guest physical address of the used ring, when log_used */
	uint32_t num;                    /* power of two, 1 to VIRTQ_MAX_SIZE */
	uint32_t memo_size;              /* bytes */
	uint32_t log_used;               /* VHOST_VRING_F_LOG was set */
	uint32_t event_idx;              /* VIRTIO_RING_F_EVENT_IDX was negotiated */
	uint32_t indirect;               /* VIRTIO_RING_F_INDIRECT_DESC was negotiated */
	uint32_t threads;                /* that run it; 1: the driver may be told of several chains at once. 0: any number */
	uint32_t poll_ns;                /* how long a dry ring is watched at most, up to POLLING_MAX; 0: not */
	uint32_t unhurried;              /* nobody waits for what has no room for a reply: left alone for a while after some */
	int32_t kick;                    /* eventfds; -1: none (kick: poll; call, err: silent) */
	int32_t call;
	int32_t err;
	int32_t stop;                    /* eventfd, shared by all queues of a worker: readable means leave */
};

/* NULL with *error = -EINVAL (bad size or alignment), -EFAULT (a ring part outside memory), -EPERM (a kick that nobody can
 * wait for), -ENOMEM (no memory, or no descriptor). Recovers what was in flight: virtq_run serves those chains first, with
 * `replay` set, in the order they were first taken. */
struct virtq *virtq_new(const struct virtq_config *config, int *error);
void virtq_free(struct virtq *queue);

/* Serves the ring until `stop` is readable (returns 0) or the ring is broken (returns -errno; -EPROTO for a rule
 * broken by the driver), or this process has no memory to read a chain (-ENOMEM, and the ring is not broken). Called by
 * any number of threads at once; where `threads` is 1, by one. */
int virtq_run(struct virtq *queue, virtq_handler handler, void *opaque);

/* Serves the next suspect among what a dead worker left, and marks it as the one that is served: 1 when there was one,
 * 0, or -errno as from virtq_run. Called before virtq_run, while nothing else is served by this worker. `refuse`
 * takes the condemned ones: it may fail, with -errno, when they can't even be answered. */
int virtq_try_suspect(struct virtq *queue, virtq_handler handler, virtq_handler refuse, void *opaque);

/* Publishes a chain with `len` bytes written. Called once per chain: by virtq_run for a handler that returned a
 * length, by whoever finishes a deferred one. */
void virtq_complete(struct virtq_chain *chain, uint32_t len);

/* For a handler that is about to do what may take long: tells the driver of what this thread has completed and held back.
 * Called by the thread that the handler was called on. */
void virtq_tell(struct virtq *queue);

/* Chains popped and not completed: a stopped queue is drained when this is 0. */
uint32_t virtq_pending(struct virtq *queue);

/* After a drain: records last_avail_idx in `state` and clears `started`, so that the front-end can be told. */
void virtq_park(struct virtq *queue);
/* The same while chains are pending that are left in flight: `started` stays. virtq_new finds them there, also when the
 * ring was stopped meanwhile and goes on from last_avail_idx. */
void virtq_suspend(struct virtq *queue);

#endif
