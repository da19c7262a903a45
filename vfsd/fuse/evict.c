/* Which descriptors of inodes are closed when there are too many.
 *
 * Rule 1. While there is room nothing here is called but descriptor_got and descriptor_gone.
 * Rule 2. CLOCK: the hand goes over the descriptors, and closes the first that was not used since it came by. One
 *         in use (pinned), an anchor, or one that can't be located stays.
 * Rule 3. Names are moved with regard to closed inodes (inode_moving) from the moment on that one may be closed; a name
 *         whose change began before that keeps any from being closed by name. A change that began and ended while an
 *         inode was being located is seen too.
 */
#include "inode.h"

#include "barrier.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Descriptors tried for one to be closed, before an open fails. Those that can't be located do not count. */
#define TRIES 64
/* Rounds of the hand that one which could not be located is spared. */
#define KEPT_ROUNDS 8
/* More descriptors than any process has, so that a limit without end costs no memory. */
#define DESCRIPTORS_MOST (1U << 24)
/* Of the descriptors a guest may hold, those that open files leave to inodes. */
#define LEFT_TO_INODES 64

int evict_open(struct core *core)
{
	struct evictor *evictor = &core->evictor;
	struct rlimit limit;

	*evictor = (struct evictor){0};
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	evictor->size = limit.rlim_cur < DESCRIPTORS_MOST ? limit.rlim_cur : DESCRIPTORS_MOST;
	evictor->slot_of_fd = mmap(NULL, (size_t)evictor->size * sizeof(*evictor->slot_of_fd), PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return evictor->slot_of_fd == MAP_FAILED ? -ENOMEM : 0;
}

void evict_close(struct core *core)
{
	munmap(core->evictor.slot_of_fd, (size_t)core->evictor.size * sizeof(*core->evictor.slot_of_fd));
}

void descriptor_got(struct core *core, uint32_t slot)
{
	struct evictor *evictor = &core->evictor;
	uint32_t fd = inode_record(core, slot)->fd;

	evictor->opened++;
	spare(core, slot);
	if (fd >= evictor->size)
		return;
	evictor->slot_of_fd[fd] = slot;
	if (fd >= evictor->high)
		evictor->high = fd + 1;
}

void descriptor_gone(struct core *core, uint32_t slot)
{
	struct evictor *evictor = &core->evictor;
	uint32_t fd = inode_record(core, slot)->fd;

	evictor->opened--;
	if (fd < evictor->size)
		evictor->slot_of_fd[fd] = 0;
}

/* Rounds of the hand in one search: by then each that is not in use was tried, and none twice. */
#define ROUNDS 3

/* The inode whose descriptor goes next, pinned; 0: all are in use. `steps`: how far the search has come. */
static uint32_t choose(struct core *core, uint64_t *steps)
{
	struct evictor *evictor = &core->evictor;

	while ((*steps)++ < (uint64_t)ROUNDS * evictor->high) {
		struct slot_private *private;
		uint32_t slot;

		if (evictor->hand >= evictor->high)
			evictor->hand = 0;
		slot = evictor->slot_of_fd[evictor->hand++];
		private = &core->inodes.private[slot];
		if (!slot || private->pins || private->anchor)
			continue;
		if (private->used) {
			private->used--;
			continue;
		}
		private->pins++;
		private->moved = 0;
		return slot;
	}
	return 0;
}

/* Whether a name found before may have been changed since. `moved`: the evictor's at that time. */
static bool name_is_old(struct core *core, uint32_t slot, uint32_t moved)
{
	return core->inodes.private[slot].moved || core->evictor.moving || core->evictor.moved != moved;
}

/* Writes what the inode is found by and takes its descriptor away, unless somebody has come for it meanwhile. */
static bool commit(struct core *core, uint32_t slot, const struct inode_key *key, const struct locator *locator,
		   uint32_t base, uint32_t moved)
{
	struct slot_private *private = &core->inodes.private[slot];
	struct inode_record *record = inode_record(core, slot);
	struct loose none = {0};

	if (private->pins != 1 || !private->refs || private->anchor)
		return false;
	if (locator->how == BY_NAME && (name_is_old(core, slot, moved) || is_closed(core, base)))
		return false;
	if (locator->how == BY_HANDLE && !mount_use(core, base))
		return false;
	if (locator_write(core, slot, locator) < 0) {
		/* The base is pinned, so it does not end by this. */
		if (locator->how == BY_HANDLE)
			mount_unuse(core, base, &none);
		loose_close(&none);
		return false;
	}
	if (locator->how == BY_NAME)
		core->inodes.private[base].refs++;
	spare(core, base);
	record->btime = key->btime;
	descriptor_gone(core, slot);
	ordered();
	record->fd = -1;
	ordered();
	return true;
}

/* Closes the descriptor of an inode that `choose` has pinned. `moved`: the evictor's at that time. 0; -ENOENT for one that
 * can't be located, which `choose` leaves alone for a while; -EBUSY for one that somebody has come for. */
static int let_go(struct core *core, uint32_t slot, uint32_t moved)
{
	int fd = inode_record(core, slot)->fd;
	struct loose loose = {0};
	struct locator locator;
	struct inode_key key;
	bool located, closed;
	uint32_t base;

	located = locate(core, slot, fd, &key, &locator, &base) == 0;
	pthread_mutex_lock(&core->inodes.lock);
	closed = located && commit(core, slot, &key, &locator, base, moved);
	if (closed)
		loose_add(&loose, fd);
	else if (!located)
		core->inodes.private[slot].used = KEPT_ROUNDS;
	if (located)
		inode_unpin(core, base, &loose);
	/* The guest may have forgotten it: then this is its end. */
	inode_unpin(core, slot, &loose);
	pthread_mutex_unlock(&core->inodes.lock);
	closed = loose.count > 0;
	loose_close(&loose);
	return closed ? 0 : located ? -EBUSY : -ENOENT;
}

/* Closes one descriptor: 0, -ENFILE when there is none to close, -EAGAIN when others have theirs in hand. */
static int evict(struct core *core)
{
	int tries = TRIES, error = -ENFILE, result = -ENOENT;
	uint32_t slot = 1, moved;
	uint64_t steps = 0;

	while (tries && slot && result) {
		pthread_mutex_lock(&core->inodes.lock);
		core->evictor.tight = true;
		core->evictor.choosing++;
		slot = choose(core, &steps);
		moved = core->evictor.moved;
		pthread_mutex_unlock(&core->inodes.lock);
		if (slot)
			result = let_go(core, slot, moved);
		tries -= result == -EBUSY;
		pthread_mutex_lock(&core->inodes.lock);
		if (--core->evictor.choosing)
			error = -EAGAIN;
		pthread_mutex_unlock(&core->inodes.lock);
	}
	return result ? error : 0;
}

int inode_evict(struct core *core)
{
	return evict(core) == 0;
}

bool out_of_descriptors(struct core *core, int error)
{
	return (error == -EMFILE || error == -ENFILE) && evict(core) == 0;
}

int open_surely(struct core *core, int dir_fd, const char *name, uint32_t flags, uint32_t mode)
{
	int fd;

	do
		fd = openat(dir_fd, name, flags, mode);
	while (fd < 0 && out_of_descriptors(core, -errno));
	return fd < 0 ? -errno : fd;
}

int reopen_surely(struct core *core, int fd, uint32_t flags)
{
	int opened;

	do
		opened = reopen(core, fd, flags);
	while (opened < 0 && out_of_descriptors(core, opened));
	return opened;
}

/* Descriptors of open files and their locks; and of all. Not all read at one moment: others may get one meanwhile in any
 * case. */
static uint64_t held_by_files(const struct core *core)
{
	return (uint64_t)read_once(&core->handles.count) + read_once(&core->locks.count);
}

static uint64_t held(const struct core *core)
{
	return held_by_files(core) + read_once(&core->evictor.opened) + 1;
}

int make_room(struct core *core, uint32_t wanted)
{
	uint32_t max = core->config.descriptors_max;

	if (!max)
		return 0;
	while (held(core) + wanted > max) {
		int error = evict(core);

		/* Some more for a moment, at most one for each thread, is what the table has room for. */
		if (error < 0)
			return error == -EAGAIN ? 0 : error;
	}
	return 0;
}

int make_room_for_handle(struct core *core)
{
	uint32_t max = core->config.descriptors_max;
	uint32_t left = max / 8 < LEFT_TO_INODES ? max / 8 : LEFT_TO_INODES;

	if (max && held_by_files(core) + left >= max)
		return -ENFILE;
	return make_room(core, 1);
}

/* What a name leads to, as far as it is known. Whether to anything. */
static bool key_of_name(int dir_fd, const char *name, const struct memo_name *seen, struct inode_key *key)
{
	struct statx stat;

	if (seen) {
		*key = (struct inode_key){seen->dev, seen->ino, seen->mnt_id, seen->btime, seen->type};
		return seen->type != 0;
	}
	if (stat_name(dir_fd, name, &stat) < 0)
		return false;
	key_of(&stat, key);
	return true;
}

uint64_t inode_moving(struct core *core, int dir_fd, const char *name, const struct memo_name *seen)
{
	struct found found = {.fd = dir_fd, .name = name};
	struct inode_key key;
	uint32_t slot;
	bool tight;

	pthread_mutex_lock(&core->inodes.lock);
	tight = core->evictor.tight;
	core->evictor.moving += !tight;
	pthread_mutex_unlock(&core->inodes.lock);
	if (!tight)
		return FUSE_ROOT_ID;
	if (!key_of_name(dir_fd, name, seen, &key))
		return 0;
	slot = inode_pin_key(core, &key, &found);
	/* The root has no name in the share; its number stands for a change that is counted. */
	if (slot == FUSE_ROOT_ID) {
		inode_unpin_unlocked(core, slot);
		slot = 0;
	}
	if (slot && inode_restore(core, slot) < 0) {
		inode_unpin_unlocked(core, slot);
		slot = 0;
	}
	return slot ? slots_id(&core->inodes, slot) : 0;
}

void inode_moved(struct core *core, uint64_t token)
{
	struct loose loose = {0};
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	if (token == FUSE_ROOT_ID) {
		core->evictor.moving--;
		core->evictor.moved++;
	} else if (inode_at(core, token, &slot)) {
		core->inodes.private[slot].moved = 1;
		inode_unpin(core, slot, &loose);
	}
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
}
