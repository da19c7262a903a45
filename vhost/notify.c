/* How each side of a ring hears of the other: kicks, and whether an interrupt is wanted (virtio 1.3, sections 2.7.7 and
 * 2.7.10). When one is sent: hold.c.
 *
 * Rule 1. A kick wakes by being written, not by having been: its counter is never read, which would be a system call more.
 */
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "barrier.h"
#include "clock.h"
#include "queue.h"

/* With no kick eventfd the ring is looked at this often, in milliseconds; and an unhurried one that is in use. */
#define LOOK_INTERVAL 1
/* Looks at a watched ring between two looks at the clock: about a microsecond. */
#define LOOKS 16

/* What became readable. */
enum { KICK, STOP };

void signal_fd(int fd)
{
	uint64_t one = 1;

	/* A full counter already says what we would say. */
	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return;
}

static int watch_fd(int epoll, int fd, uint32_t events, uint32_t what)
{
	struct epoll_event event = { .events = events, .data.u32 = what };

	if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0)
		return 0;
	return errno == EPERM ? -EPERM : -ENOMEM;
}

int waiting_open(struct virtq *queue)
{
	int ret;

	queue->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (queue->epoll < 0)
		return -ENOMEM;
	ret = watch_fd(queue->epoll, queue->config.stop, EPOLLIN, STOP);
	if (!ret)
		ret = watch_fd(queue->epoll, queue->config.kick, EPOLLIN | EPOLLET, KICK);
	if (ret)
		close(queue->epoll);
	return ret;
}

void waiting_close(struct virtq *queue)
{
	close(queue->epoll);
}

bool stop_asked(struct virtq *queue)
{
	struct pollfd stop = { queue->config.stop, POLLIN, 0 };

	return poll(&stop, 1, 0) > 0;
}

/* Asks the driver to kick for the next entry, or not to. With EVENT_IDX an old avail_event asks for none. */
static void want_kick(struct virtq *queue, bool want)
{
	uint64_t event = avail_event_offset(queue);

	if (queue->config.event_idx) {
		if (!want)
			return;
		write_once((uint16_t *)((char *)queue->used + event), queue->last_avail);
		used_dirty(queue, event, sizeof(uint16_t));
	} else {
		write_once(&queue->used->flags, want ? 0 : VRING_USED_F_NO_NOTIFY);
		used_dirty(queue, offsetof(struct vring_used, flags), sizeof(uint16_t));
	}
}

/* Whether the driver waits for what is in the ring. Windows' gives each FORGET room for a reply, and goes on when that is
 * served; Linux' gives none. */
static bool in_a_hurry(const struct virtq *queue)
{
	return !queue->config.unhurried || queue->awaited;
}

/* Watches a dry ring as long as that seems worth it: not where the driver needs our core to come. Kicks are not asked for
 * meanwhile, and of `stop` it is soon enough to hear then. 1: there is an entry; 0: there is none yet; -errno. Never inlined:
 * a profile is to tell time that passes here from what serving takes. */
static __attribute__((noinline)) int watch(struct virtq *queue, uint64_t begin)
{
	struct virtq_state *state = queue->config.state;
	uint32_t span = in_a_hurry(queue) && !shares_our_core(queue) ? polling_begin(&queue->polling) : 0;
	uint64_t now = begin, before;
	int ret = 0;

	if (!span)
		return 0;
	do {
		for (unsigned i = 0; i < LOOKS && !ret; i++) {
			cpu_relax();
			ret = avail_ready(queue);
		}
		before = now;
		now = clock_ns();
	} while (!ret && now - begin < span && now - before < POLLING_DISTURBED);
	if (ret > 0 && now - before < POLLING_DISTURBED) {
		polling_paid(&queue->polling, now - begin);
		write_once(&state->polls_paid, state->polls_paid + 1);
	} else {
		polling_failed(&queue->polling);
		write_once(&state->polls_failed, state->polls_failed + 1);
	}
	pace_begin(&queue->pace, now, queue->last_avail);
	return ret;
}

/* Sleeps until the driver kicks, milliseconds at most; -1: for good. 1: look again; 0: stop; -errno. */
static int sleep_for_kick(struct virtq *queue, int most)
{
	struct virtq_state *state = queue->config.state;
	struct epoll_event events[2];
	int n = epoll_wait(queue->epoll, events, 2, most);

	queue->unpolled = 0;
	if (n < 0)
		return errno == EINTR ? 1 : -errno;
	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 == STOP)
			return 0;
		if (!(events[i].events & EPOLLIN))
			return broken(queue, -EBADF);
		write_once(&state->kicks, state->kicks + 1);
	}
	return 1;
}

/* Leaves an unhurried ring alone that was served since the last time: what comes meanwhile takes neither a kick nor a
 * wake-up, of which a guest that removes a tree would have one for each file. As sleep_for_kick. */
static int rest(struct virtq *queue)
{
	if (in_a_hurry(queue) || queue->rested == queue->last_avail)
		return 1;
	queue->rested = queue->last_avail;
	return sleep_for_kick(queue, LOOK_INTERVAL);
}

int virtq_wait(struct virtq *queue)
{
	uint64_t begin = clock_ns(), end;
	int ret;

	pace_end(&queue->pace, begin, queue->last_avail);
	ret = watch(queue, begin);
	if (ret)
		return ret;
	ret = rest(queue);
	if (ret <= 0)
		return ret;
	want_kick(queue, true);
	/* Ordered point "sleep?": pairs with the driver's fence between its store of avail.idx and its load of
	 * avail_event or flags (virtio 1.3, 2.7.13.4). Either it sees that we want a kick, or we see its entry. */
	full_fence();
	ret = avail_ready(queue);
	if (!ret)
		ret = sleep_for_kick(queue, queue->config.kick < 0 ? LOOK_INTERVAL : -1);
	if (ret > 0) {
		want_kick(queue, false);
		end = clock_ns();
		polling_slept(&queue->polling, end - begin);
		pace_begin(&queue->pace, end, queue->last_avail);
	}
	return ret;
}

bool interrupt_wanted(struct virtq *queue)
{
	struct virtq_state *state = queue->config.state;
	uint16_t told = queue->told_idx;
	bool wanted;

	/* Another thread has told of all. */
	if (told == queue->used_idx)
		return false;
	/* Ordered point "interrupt?": pairs with the driver's fence between its store of used_event or flags and its
	 * load of used.idx (virtio 1.3, 2.7.14). Either it sees our index, or we see that it wants to be told. One fence
	 * does for all that was published since the last one. */
	full_fence();
	queue->told_idx = queue->used_idx;
	if (queue->config.event_idx)
		wanted = vring_need_event(read_once(&queue->avail->ring[queue->config.num]), queue->used_idx, told);
	else
		wanted = !(read_once(&queue->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
	if (wanted && queue->config.call >= 0)
		write_once(&state->interrupts, state->interrupts + 1);
	return wanted;
}
