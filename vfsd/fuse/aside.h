/* What would have a ring wait for a disk, and is served aside from it: by threads (later.c), and READs of files in the page
 * cache by an io_uring (reader.c). */
#ifndef VFSD_FUSE_ASIDE_H
#define VFSD_FUSE_ASIDE_H

#include <pthread.h>
#include <stdbool.h>

#include "core.h"

/* later.c; `lock` is for all of it. */
struct later_list {
	struct virtq_chain *first;
	struct virtq_chain *last;
	uint32_t count;
};
struct later {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct later_list lists[2]; /* that wait for a thread, by LATER_* */
	bool in_turn;               /* one of the second list is being served */
	uint32_t threads;
	uint32_t idle;
	bool ended;
};

/* reader.c; `lock` is for all of it. */
#define READER_NONE 0
#define READER_RUNS 1
#define READER_REFUSED 2
struct reader {
	pthread_mutex_t lock;
	struct pending_read *given; /* by rings, for the thread to take up */
	struct pending_read *given_last;
	int state;
	int wake;    /* eventfd that it listens to */
	bool asleep; /* it does not look at `given` unless it is woken */
	bool ended;
	uint32_t usual; /* of READs that wait: usual.h */
};

/* serve.c. Serves a chain on a thread that may wait, and completes it. */
void serve_waiting(struct core *core, struct virtq_chain *chain);

/* later.c */
void later_open(struct core *core);
void later_close(struct core *core);
/* Before what may take long on a ring's own thread: its driver hears first of what was served before. */
void may_last(const struct core *core, const struct fuse_request *request);
/* Whether a request may be served by another thread, as one that would wait for a disk. */
bool later_possible(const struct core *core, const struct fuse_request *request);
/* Has it served so, from its start: VIRTQ_DEFERRED is what to return then. False: there is no such thread. */
#define LATER_SIDE_BY_SIDE 0
#define LATER_IN_TURN 1 /* after all others that were sent so */
bool later_serve(struct core *core, struct virtq_chain *chain, int how);
void later_run(struct core *core);
void later_end(struct core *core);

/* reader.c */
void reader_open(struct core *core);
void reader_close(struct core *core);
/* Goes on with a READ of [offset, offset + size) of which `done` bytes are there: VIRTQ_DEFERRED is what to return then,
 * and the pin of the handle is given away. False: it can't. */
bool reader_read(struct core *core, const struct fuse_request *request, int fd, uint64_t fh, uint64_t offset,
		 uint64_t size, uint64_t done);
/* Whether a READ that waits takes so little that a ring with nothing else to do had better wait for it. */
bool reader_is_quick(const struct core *core);
/* What one took that began then, by clock_ns(). */
void reader_learn(struct core *core, uint64_t begun);
void reader_run(struct core *core);
void reader_end(struct core *core);

#endif
