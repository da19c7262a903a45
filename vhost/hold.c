/* When the driver is told of what was published for it: at once, or with more. An interrupt is a system call, and a wake-up
 * besides if the driver sleeps.
 *
 * Rule 1. Only a ring's only thread holds back, and while it knows of chains to serve. It tells before it takes up what may
 *         last, and before it waits or leaves; if it dies first, the next worker tells (virtq.c, resume).
 * Rule 2. It tells while there is something left to serve until the driver is awake (pace.h). One that needs our core to wake
 *         is told last.
 */
#include "barrier.h"
#include "clock.h"
#include "queue.h"

/* The driver is told of so many chains at once, or of those of so many nanoseconds. */
#define HOLD_MAX 32
#define HOLD_TIME 20000
/* Of chains that take less than so many nanoseconds, so many are held back between two looks at the clock. */
#define HOLD_QUICK 2000
#define HOLD_LOOK 4
/* Interrupts with which a driver has to come, or not, more often than the other way, before it counts as sharing our core. */
#define SHARED 4

bool shares_our_core(const struct virtq *queue)
{
	return queue->shared >= SHARED;
}

void keep_pace(struct virtq *queue)
{
	uint64_t now = clock_ns();

	pace_end(&queue->pace, now, queue->last_avail);
	pace_begin(&queue->pace, now, queue->last_avail);
}

/* An interrupt, by the only thread. Whoever has come while it was sent was given our core for it: across cores a wake-up
 * takes longer than sending it does. */
static void interrupt(struct virtq *queue)
{
	uint16_t before = read_once(&queue->avail->idx);

	signal_fd(queue->config.call);
	if (read_once(&queue->avail->idx) == before)
		queue->shared -= queue->shared > 0;
	else
		queue->shared += queue->shared < 2 * SHARED;
}

/* Whether what is held back has been so for long. */
static bool held_long(struct virtq *queue)
{
	bool quick = queue->pace.chain && queue->pace.chain < HOLD_QUICK;
	uint64_t now;

	if (quick && queue->held % HOLD_LOOK)
		return false;
	now = clock_ns();
	if (queue->held)
		pace_learn(&queue->pace, now - queue->held_since, queue->held);
	else
		queue->held_since = now;
	return now - queue->held_since >= HOLD_TIME;
}

/* Whether the driver may be told of what is about to be published later, with more: there are chains to serve next. */
static bool may_hold(struct virtq *queue)
{
	/* What has come meanwhile is served next. Whether the index makes sense, pop finds out. */
	uint16_t left = load_acquire(&queue->avail->idx) - queue->last_avail;
	uint32_t least = shares_our_core(queue) ? 0 : pace_left(&queue->pace);

	return left > least && queue->held + 1 < HOLD_MAX && !held_long(queue);
}

/* Whether another thread may complete a chain now. One that has, has counted it last: what it did is seen then. */
static bool others_complete(struct virtq *queue)
{
	uint32_t ours = 1 + queue->resubmit_count - queue->resubmit_next;

	return virtq_pending(queue) != ours;
}

void complete_alone(struct virtq_chain *chain, uint32_t len)
{
	struct virtq *queue = chain->queue;
	bool hold = may_hold(queue);
	bool wanted = settle(chain, len, hold, others_complete(queue));

	queue->held = hold ? queue->held + 1 : 0;
	if (wanted)
		interrupt(queue);
	/* Last, as in virtq_complete. */
	store_release(&queue->done_alone, queue->done_alone + 1);
}

void virtq_tell(struct virtq *queue)
{
	bool wanted;

	if (!queue->held)
		return;
	queue->held = 0;
	pthread_mutex_lock(&queue->used_lock);
	wanted = interrupt_wanted(queue);
	pthread_mutex_unlock(&queue->used_lock);
	if (wanted)
		interrupt(queue);
}
