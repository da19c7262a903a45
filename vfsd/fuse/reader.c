/* READs of what is not in the host's page cache yet: one thread has them all under way at once, by io_uring.
 *
 * Rule 1. Only files that are read through the page cache. What a disk still writes to guest memory after its process has
 *         died would come too late: behind the answer that the next worker has given. A copy from the page cache ends
 *         with its process.
 * Rule 2. Only the thread itself touches the io_uring; what rings give it passes a list.
 * Rule 3. Where the kernel refuses the thread an io_uring, such READs are served by other threads (later.c).
 */
#include "internal.h"

#include "usual.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Submitted by one system call at most. */
#define READER_DEPTH 128
/* Under way at most: so many completions there is room for, beside that of a ring's call. */
#define READER_MOST (2 * READER_DEPTH - 1)
/* To hand a READ over and back takes some 10 us of two processors. A ring that has nothing else to do waits for a disk
 * that is not much slower; what comes meanwhile waits for so long, nanoseconds, at most, or once. */
#define QUICK 200000
/* With READs under way nobody wakes the thread for so long, nanoseconds: mostly one of them is done before that, and what
 * was given meanwhile is taken up with it. */
#define PATIENCE 100000

struct pending_read {
	struct pending_read *next;
	struct virtq_chain *chain;
	uint64_t unique;
	uint64_t fh;     /* pinned */
	uint64_t offset; /* in the file, of the first byte of the reply */
	uint64_t size;
	uint64_t done;
	uint64_t begun;  /* clock_ns */
	int32_t fd;
	struct iovec parts[]; /* of the reply: what is under way */
};

void reader_open(struct core *core)
{
	pthread_mutex_init(&core->reader.lock, NULL);
	core->reader.wake = -1;
}

void reader_close(struct core *core)
{
	pthread_mutex_destroy(&core->reader.lock);
}

/* Locked. Whether the thread is there; the first to ask gets it going. */
static bool have_reader(struct core *core)
{
	struct reader *reader = &core->reader;

	if (reader->state != READER_NONE)
		return reader->state == READER_RUNS;
	reader->wake = eventfd(0, EFD_CLOEXEC);
	if (reader->wake < 0)
		return false;
	/* It finds the lock taken until we are through. */
	if (core->config.lend(core, LEND_READ) == 0) {
		reader->state = READER_RUNS;
		return true;
	}
	close(reader->wake);
	return false;
}

/* Locked. */
static void give(struct reader *reader, struct pending_read *read)
{
	uint64_t one = 1;

	read->next = NULL;
	*(reader->given ? &reader->given_last->next : &reader->given) = read;
	reader->given_last = read;
	if (!reader->asleep)
		return;
	reader->asleep = false;
	if (write(reader->wake, &one, sizeof(one)) < 0)
		abort();
}

bool reader_read(struct core *core, const struct fuse_request *request, int fd, uint64_t fh, uint64_t offset,
		 uint64_t size, uint64_t done)
{
	struct reader *reader = &core->reader;
	struct pending_read *read = malloc(sizeof(*read) + request->chain->out_count * sizeof(struct iovec));
	bool possible;

	if (!read)
		return false;
	*read = (struct pending_read){
		.chain = request->chain, .unique = request->header.unique, .fh = fh, .offset = offset, .size = size,
		.done = done, .begun = clock_ns(), .fd = fd,
	};
	pthread_mutex_lock(&reader->lock);
	possible = have_reader(core);
	if (possible) {
		fetch_add(&core->config.session->aside, 1);
		give(reader, read);
	}
	pthread_mutex_unlock(&reader->lock);
	if (!possible)
		free(read);
	return possible;
}

bool reader_is_quick(const struct core *core)
{
	return usually_within(&core->reader.usual, QUICK);
}

void reader_learn(struct core *core, uint64_t begun)
{
	usual_learn(&core->reader.usual, begun, UINT32_MAX / 2);
}

static struct io_uring_sqe *next_sqe(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	if (!sqe) {
		io_uring_submit(ring);
		sqe = io_uring_get_sqe(ring);
	}
	return sqe;
}

static void submit(struct io_uring *ring, struct pending_read *read)
{
	const struct virtq_chain *chain = read->chain;
	struct io_uring_sqe *sqe = next_sqe(ring);
	uint32_t parts;

	iov_split(chain->out, chain->out_count, sizeof(struct fuse_out_header) + read->done, read->size - read->done,
		  read->parts, chain->out_count, &parts);
	io_uring_prep_readv(sqe, read->fd, read->parts, parts, read->offset + read->done);
	io_uring_sqe_set_data(sqe, read);
}

/* As transfer in ops_io.c goes on: until all is there, the end of the file or an error. Whether it has come to that. */
static bool step(struct io_uring *ring, struct pending_read *read, int result)
{
	if (result > 0)
		read->done += result;
	if (result != -EINTR && (result <= 0 || read->done >= read->size))
		return true;
	submit(ring, read);
	return false;
}

/* Has a READ served by a thread that may wait. */
static void send_on(struct core *core, struct pending_read *read)
{
	handle_put(core, read->fh);
	if (!later_serve(core, read->chain, LATER_SIDE_BY_SIDE))
		serve_waiting(core, read->chain);
	free(read);
}

static void answer(struct core *core, struct pending_read *read, int result)
{
	/* Of the io_uring, and not of the file: it found no memory, or no thread for what it can't do without. */
	if (result == -EAGAIN || result == -ECANCELED) {
		send_on(core, read);
		return;
	}
	handle_put(core, read->fh);
	reader_learn(core, read->begun);
	fuse_finish(core, read->chain, read->unique, NULL, result < 0 ? result : (int64_t)read->done);
	free(read);
}

/* What rings gave since the last look. If that is nothing, and we are to sleep, the next one wakes us. */
static struct pending_read *taken(struct reader *reader, bool sleep, bool *ended)
{
	struct pending_read *reads;

	pthread_mutex_lock(&reader->lock);
	reads = reader->given;
	reader->given = NULL;
	reader->asleep = sleep && !reads;
	*ended = reader->ended;
	pthread_mutex_unlock(&reader->lock);
	return reads;
}

/* Without patience until there is no more: what is under way may take long. False when there is to be no more. */
static bool take_up(struct core *core, struct io_uring *ring, bool patient, unsigned *count)
{
	struct reader *reader = &core->reader;
	struct pending_read *read, *next;
	bool ended;

	while ((read = taken(reader, !patient || !*count, &ended))) {
		for (; read; read = next) {
			next = read->next;
			if (*count == READER_MOST) {
				send_on(core, read);
			} else {
				submit(ring, read);
				++*count;
			}
		}
	}
	return !ended || *count;
}

/* For what was under way to be done, or for a ring's call. Whether it came, where that is not waited for long. */
static bool wait(struct io_uring *ring, bool briefly)
{
	struct __kernel_timespec limit = {.tv_nsec = PATIENCE};
	struct io_uring_cqe *cqe = NULL;

	if (!briefly) {
		io_uring_submit_and_wait(ring, 1);
		return true;
	}
	io_uring_submit_and_wait_timeout(ring, &cqe, 1, &limit, NULL);
	return cqe;
}

static void run(struct core *core, struct io_uring *ring)
{
	struct reader *reader = &core->reader;
	bool listening = false, patient = true;
	unsigned count = 0;
	uint64_t woken;

	while (take_up(core, ring, patient, &count)) {
		struct io_uring_cqe *cqe;

		if (!listening) {
			struct io_uring_sqe *sqe = next_sqe(ring);

			io_uring_prep_read(sqe, reader->wake, &woken, sizeof(woken), 0);
			io_uring_sqe_set_data(sqe, NULL);
			listening = true;
		}
		patient = wait(ring, patient && count);
		while (io_uring_peek_cqe(ring, &cqe) == 0) {
			struct pending_read *read = io_uring_cqe_get_data(cqe);
			int result = cqe->res;

			io_uring_cqe_seen(ring, cqe);
			if (!read) {
				listening = false;
			} else if (step(ring, read, result)) {
				answer(core, read, result);
				count--;
			}
		}
	}
}

/* Without an io_uring: what was given by now goes another way, and so does what comes. */
static void refuse(struct core *core)
{
	struct reader *reader = &core->reader;
	struct pending_read *read, *next;

	pthread_mutex_lock(&reader->lock);
	reader->state = READER_REFUSED;
	read = reader->given;
	reader->given = NULL;
	pthread_mutex_unlock(&reader->lock);
	for (; read; read = next) {
		next = read->next;
		send_on(core, read);
	}
}

void reader_run(struct core *core)
{
	struct io_uring ring;
	/* What completes is looked at when this thread waits, not in the middle of something (Linux 6.1). */
	int error = io_uring_queue_init(READER_DEPTH, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

	if (error < 0)
		error = io_uring_queue_init(READER_DEPTH, &ring, 0);
	if (error < 0) {
		refuse(core);
	} else {
		run(core, &ring);
		io_uring_queue_exit(&ring);
	}
	close(core->reader.wake);
}

void reader_end(struct core *core)
{
	uint64_t one = 1;

	pthread_mutex_lock(&core->reader.lock);
	core->reader.ended = true;
	if (core->reader.state == READER_RUNS && write(core->reader.wake, &one, sizeof(one)) < 0)
		abort();
	pthread_mutex_unlock(&core->reader.lock);
}
