/* Requests that would have their ring wait for a disk: threads that have nothing else to do serve them, and the ring
 * goes on.
 *
 * Rule 1. Threads come from Python (config.lend), one whenever nobody is idle, up to LATER_THREADS; they stay.
 * Rule 2. A request is served from its start, as if nobody had looked at it before: an op sends itself here before it
 *         has done anything.
 * Rule 3. Where there are no threads to be had its ring waits.
 */
#include "internal.h"

#include "barrier.h"

/* As many requests wait for a disk at a time. READs of the page cache's files wait elsewhere (reader.c). */
#define LATER_THREADS 16

void later_open(struct core *core)
{
	pthread_mutex_init(&core->later.lock, NULL);
	pthread_cond_init(&core->later.more, NULL);
}

void later_close(struct core *core)
{
	pthread_cond_destroy(&core->later.more);
	pthread_mutex_destroy(&core->later.lock);
}

/* Sees to it that there is a thread for one more. Whether there is any at all. Locked; lets go of the lock. */
static bool have_thread(struct core *core, int how)
{
	struct later *later = &core->later;
	bool busy = later->in_turn || later->lists[LATER_IN_TURN].first, lent;

	if (how == LATER_IN_TURN && busy)
		return true;
	if (later->lists[LATER_SIDE_BY_SIDE].count + busy < later->idle || later->threads == LATER_THREADS)
		return later->threads != 0;
	/* Counted before it is there: others that come meanwhile ask for their own. */
	later->threads++;
	pthread_mutex_unlock(&later->lock);
	lent = core->config.lend(core, LEND_SERVE) == 0;
	pthread_mutex_lock(&later->lock);
	if (!lent)
		later->threads--;
	return later->threads != 0;
}

void may_last(const struct core *core, const struct fuse_request *request)
{
	if (!request->waits && request->chain->queue && core->config.tell)
		core->config.tell(request->chain->queue);
}

bool later_possible(const struct core *core, const struct fuse_request *request)
{
	return !request->waits && core->config.lend && request->chain->queue;
}

bool later_serve(struct core *core, struct virtq_chain *chain, int how)
{
	struct later *later = &core->later;
	struct later_list *list = &later->lists[how];
	bool possible;

	pthread_mutex_lock(&later->lock);
	possible = have_thread(core, how) && !later->ended;
	if (possible) {
		chain->next = NULL;
		*(list->first ? &list->last->next : &list->first) = chain;
		list->last = chain;
		list->count++;
		fetch_add(&core->config.session->aside, 1);
	}
	pthread_mutex_unlock(&later->lock);
	/* Not before: whoever wakes wants the lock. */
	if (possible)
		pthread_cond_signal(&later->more);
	return possible;
}

/* The list whose first may be served now, or NULL. */
static struct later_list *ready(struct later *later)
{
	if (later->lists[LATER_IN_TURN].first && !later->in_turn)
		return &later->lists[LATER_IN_TURN];
	return later->lists[LATER_SIDE_BY_SIDE].first ? &later->lists[LATER_SIDE_BY_SIDE] : NULL;
}

/* The next request, after one that was taken as *in_turn says; NULL when there are to be no more. */
static struct virtq_chain *take(struct later *later, bool *in_turn)
{
	struct virtq_chain *chain = NULL;
	struct later_list *list;

	pthread_mutex_lock(&later->lock);
	if (*in_turn)
		later->in_turn = false;
	later->idle++;
	while (!(list = ready(later)) && !later->ended)
		pthread_cond_wait(&later->more, &later->lock);
	later->idle--;
	if (list) {
		chain = list->first;
		list->first = chain->next;
		list->count--;
		*in_turn = list == &later->lists[LATER_IN_TURN];
		later->in_turn |= *in_turn;
	}
	pthread_mutex_unlock(&later->lock);
	return chain;
}

void later_run(struct core *core)
{
	struct virtq_chain *chain;
	bool in_turn = false;

	while ((chain = take(&core->later, &in_turn)))
		serve_waiting(core, chain);
}

void later_end(struct core *core)
{
	pthread_mutex_lock(&core->later.lock);
	core->later.ended = true;
	pthread_cond_broadcast(&core->later.more);
	pthread_mutex_unlock(&core->later.lock);
}

void fuse_lent(struct core *core, uint32_t work)
{
	if (work == LEND_READ)
		reader_run(core);
	else
		later_run(core);
}

void fuse_lent_end(struct core *core)
{
	reader_end(core);
	later_end(core);
}
