/* How an inode whose descriptor was closed gets one again.
 *
 * Rule 1. What is opened is the inode that was closed, or nothing (ESTALE): its whole key and its tag are compared.
 * Rule 2. One that is found by name needs its directory open first, which may be closed too: one at a time, from the
 *         nearest open one down, each pinned until the next has it as its base.
 */
#include "inode.h"

#include <errno.h>
#include <unistd.h>

/* One closed record that is about to be opened, and what it is found through; both pinned. */
struct opening {
	struct inode_key key;
	struct locator locator;
	uint64_t nodeid;
	uint32_t slot;
	uint32_t base;
	int base_fd;
};

/* The closed record to be opened first on the way to `slot`: the one whose directory is open. Locked. */
static int next_opening(struct core *core, uint32_t slot, struct opening *opening)
{
	uint32_t steps = core->inodes.high, base_slot;
	struct inode_record *record, *base;

	for (;; slot = base_slot) {
		record = inode_record(core, slot);
		base = inode_at(core, record->base, &base_slot);
		/* A damaged arena may hold a circle. */
		if (!base || !steps--)
			return -ESTALE;
		if (base->fd >= 0)
			break;
	}
	if (record->how == BY_HANDLE && !mount_use(core, base_slot))
		return -ESTALE;
	locator_read(core, slot, &opening->locator);
	opening->key = record_key(record);
	opening->nodeid = slots_id(&core->inodes, slot);
	opening->slot = slot;
	opening->base = base_slot;
	opening->base_fd = base->fd;
	core->inodes.private[slot].pins++;
	core->inodes.private[base_slot].pins++;
	spare(core, base_slot);
	return 0;
}

static int open_once(struct core *core, const struct opening *opening)
{
	const struct locator *locator = &opening->locator;
	int fd;

	if (locator->how == BY_HANDLE) {
		fd = mount_descriptor(core, opening->base);
		if (fd >= 0)
			fd = file_handle_open(fd, locator->handle_type, locator->bytes, locator->len);
		/* What a file system says of a handle it can't make sense of. */
		return fd == -EINVAL ? -ESTALE : fd;
	}
	fd = openat(opening->base_fd, locator->bytes, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Whether a descriptor is that of the inode that was closed. A file handle says so itself, but for the mount and what
 * a broken file system may make of it; its birth time may change (inode.c, find_reborn). */
static bool is_same(const struct opening *opening, int fd)
{
	struct inode_handle handle;
	struct inode_key key;
	struct statx stat;

	if (stat_fd(fd, &stat) < 0)
		return false;
	key_of(&stat, &key);
	if (opening->locator.how == BY_HANDLE)
		return same_place(&key, &opening->key);
	if (!same_key(&key, &opening->key))
		return false;
	if (opening->locator.tag)
		file_handle_of(fd, "", &handle);
	return !opening->locator.tag || handle.tag == opening->locator.tag;
}

/* An inode the guest has open is found by that, whatever became of its name. */
static int open_from_handle(struct core *core, const struct opening *opening)
{
	struct inode_key key;
	struct statx stat;
	uint64_t fh;
	int fd = handle_of_inode(core, opening->nodeid, &fh);
	int opened;

	if (fd < 0)
		return -ESTALE;
	opened = reopen(core, fd, O_PATH);
	handle_put(core, fh);
	if (opened < 0)
		return opened;
	if (stat_fd(opened, &stat) == 0) {
		key_of(&stat, &key);
		if (same_place(&key, &opening->key))
			return opened;
	}
	close(opened);
	return -ESTALE;
}

static int open_located(struct core *core, const struct opening *opening)
{
	int fd;

	do
		fd = open_once(core, opening);
	while (fd < 0 && out_of_descriptors(core, fd));
	if (fd >= 0 && !is_same(opening, fd)) {
		close(fd);
		fd = -ESTALE;
	}
	if (fd != -ESTALE && fd != -ENOENT && fd != -ENOTDIR && fd != -ELOOP)
		return fd;
	do
		fd = open_from_handle(core, opening);
	while (fd < 0 && out_of_descriptors(core, fd));
	return fd;
}

/* Gives the record what was opened and lets go of its base. The record stays pinned, but for an error. */
static void finish_opening(struct core *core, const struct opening *opening, int fd)
{
	struct loose loose = {0};

	pthread_mutex_lock(&core->inodes.lock);
	if (opening->locator.how == BY_HANDLE && mount_unuse(core, opening->base, &loose))
		inode_settle(core, opening->base, &loose);
	if (fd >= 0 && is_closed(core, opening->slot))
		inode_adopt(core, opening->slot, fd, &loose);
	else
		loose_add(&loose, fd);
	inode_unpin(core, opening->base, &loose);
	if (fd < 0)
		inode_unpin(core, opening->slot, &loose);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
}

int inode_restore(struct core *core, uint32_t slot)
{
	struct opening opening;
	uint32_t held = 0;
	int fd, error = 0;

	for (;;) {
		pthread_mutex_lock(&core->inodes.lock);
		fd = inode_record(core, slot)->fd;
		if (fd < 0)
			error = next_opening(core, slot, &opening);
		pthread_mutex_unlock(&core->inodes.lock);
		if (held)
			inode_unpin_unlocked(core, held);
		if (fd >= 0 || error < 0)
			return fd >= 0 ? fd : error;
		error = make_room(core, 1);
		fd = error < 0 ? error : open_located(core, &opening);
		finish_opening(core, &opening, fd);
		if (fd < 0)
			return fd;
		/* What was opened on the way stays until the next step has it as its base. */
		held = opening.slot;
	}
}
