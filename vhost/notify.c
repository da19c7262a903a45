/* How each side of a ring hears of the other: kicks, and interrupts (virtio 1.3, sections 2.7.7 and 2.7.10).
 *
 * Rule 1. A kick wakes by being written, not by having been: its counter is never read, which would be a system call more.
 */
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "barrier.h"
#include "queue.h"

/* With no kick eventfd the ring is looked at this often, in milliseconds. */
#define LOOK_INTERVAL 1
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

/* Sleeps until the driver kicks. 1: look again; 0: stop; -errno. */
static int sleep_for_kick(struct virtq *queue)
{
	struct virtq_state *state = queue->config.state;
	struct epoll_event events[2];
	int n = epoll_wait(queue->epoll, events, 2, queue->config.kick < 0 ? LOOK_INTERVAL : -1);

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

int virtq_wait(struct virtq *queue)
{
	int ret;

	want_kick(queue, true);
	/* Ordered point "sleep?": pairs with the driver's fence between its store of avail.idx and its load of
	 * avail_event or flags (virtio 1.3, 2.7.13.4). Either it sees that we want a kick, or we see its entry. */
	full_fence();
	ret = avail_ready(queue);
	if (!ret)
		ret = sleep_for_kick(queue);
	if (ret > 0)
		want_kick(queue, false);
	return ret;
}

bool interrupt_wanted(struct virtq *queue)
{
	uint16_t told = queue->told_idx;

	/* Ordered point "interrupt?": pairs with the driver's fence between its store of used_event or flags and its
	 * load of used.idx (virtio 1.3, 2.7.14). Either it sees our index, or we see that it wants to be told. */
	full_fence();
	queue->told_idx = queue->used_idx;
	if (queue->config.event_idx)
		return vring_need_event(read_once(&queue->avail->ring[queue->config.num]), queue->used_idx, told);
	return !(read_once(&queue->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
}
