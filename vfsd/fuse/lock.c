/* The lock table: which descriptor holds the POSIX record locks that one of the guest's lock owners has on an inode.
 *
 * Rule 1. Each pair of inode and owner has an open file of its own, and what the owner locks are that file's OFD locks
 *         (fcntl(2), "Open file description locks"). So owners exclude each other, other guests and the host's
 *         processes, and a lock outlives a worker as its descriptor does.
 * Rule 2. A live record holds one pin. Whatever ends an owner's locks revokes its record; the descriptor is closed with
 *         the last pin, so that another thread never sets a lock on a number that means something else by then.
 */
#include "lock.h"

#include "barrier.h"

#include <errno.h>
#include <unistd.h>

#define FIRST_SLOT 1
/* An owner's locks were set through more than one handle. No fh is 0. */
#define SEVERAL 0

static uint32_t *bucket_of(struct core *core, uint64_t nodeid)
{
	return &core->lock_buckets[nodeid % LOCK_BUCKETS];
}

static void index_lock(struct core *core, uint32_t slot)
{
	uint32_t *head = bucket_of(core, lock_record(core, slot)->nodeid);

	core->locks.private[slot].next = *head;
	*head = slot;
}

/* The record is not found again; what is left of it are its pins. */
static void strike(struct core *core, uint32_t slot)
{
	uint32_t *link = bucket_of(core, lock_record(core, slot)->nodeid);

	while (*link != slot)
		link = &core->locks.private[*link].next;
	*link = core->locks.private[slot].next;
	slots_revoke(&core->locks, slot);
}

static uint32_t find(struct core *core, uint64_t nodeid, uint64_t owner)
{
	uint32_t slot = *bucket_of(core, nodeid);

	while (slot && (lock_record(core, slot)->nodeid != nodeid || lock_record(core, slot)->owner != owner))
		slot = core->locks.private[slot].next;
	return slot;
}

static bool plausible(const struct lock_record *record)
{
	return record->slot.generation != 0 && record->fd >= 0;
}

static bool lock_check(void *opaque, struct slot_record *slot_record, uint32_t slot)
{
	struct lock_record *record = (struct lock_record *)slot_record;
	struct core *core = opaque;

	if (!plausible(record) || find(core, record->nodeid, record->owner) ||
	    !descriptor_is_of(core, record->fd, record->nodeid))
		return false;
	core->locks.private[slot].pins = 1;
	index_lock(core, slot);
	return true;
}

int lock_table_open(struct core *core)
{
	core->lock_watch = -1;
	return slots_open(&core->locks, core->config.locks, core->config.locks_size, sizeof(struct lock_record),
			  FIRST_SLOT, lock_check, core);
}

void lock_table_close(struct core *core)
{
	slots_close(&core->locks);
}

void lock_put(struct core *core, uint32_t slot)
{
	int fd = -1;

	pthread_mutex_lock(&core->locks.lock);
	if (--core->locks.private[slot].pins == 0) {
		fd = lock_record(core, slot)->fd;
		slots_give(&core->locks, slot);
	}
	pthread_mutex_unlock(&core->locks.lock);
	if (fd >= 0)
		close(fd);
}

void lock_wake(struct core *core)
{
	uint64_t one = 1;
	int fd;

	pthread_mutex_lock(&core->locks.lock);
	fd = core->lock_watch;
	pthread_mutex_unlock(&core->locks.lock);
	/* A full counter already says what we would say. */
	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return;
}

void lock_watch(struct core *core, int fd)
{
	pthread_mutex_lock(&core->locks.lock);
	core->lock_watch = fd;
	pthread_mutex_unlock(&core->locks.lock);
}

/* Ends the locks of a record that was revoked: now, and not when another thread lets go of its pin. */
static void end(struct core *core, uint32_t slot)
{
	struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	fcntl(lock_record(core, slot)->fd, F_OFD_SETLK, &all);
	lock_put(core, slot);
	lock_wake(core);
}

void lock_release(struct core *core, uint64_t nodeid, uint64_t owner)
{
	uint32_t slot;

	if (!read_once(&core->locks.count))
		return;
	pthread_mutex_lock(&core->locks.lock);
	slot = find(core, nodeid, owner);
	if (slot)
		strike(core, slot);
	pthread_mutex_unlock(&core->locks.lock);
	if (slot)
		end(core, slot);
}

static bool set_through(const struct lock_record *record, uint64_t nodeid, uint64_t fh)
{
	return record->nodeid == nodeid && (record->fh == fh || fh == EVERY_HANDLE);
}

void lock_release_handle(struct core *core, uint64_t nodeid, uint64_t fh)
{
	uint32_t slot;

	if (!read_once(&core->locks.count))
		return;
	do {
		pthread_mutex_lock(&core->locks.lock);
		slot = *bucket_of(core, nodeid);
		while (slot && !set_through(lock_record(core, slot), nodeid, fh))
			slot = core->locks.private[slot].next;
		if (slot)
			strike(core, slot);
		pthread_mutex_unlock(&core->locks.lock);
		if (slot)
			end(core, slot);
	} while (slot);
}

void lock_table_reset(struct core *core)
{
	uint32_t slot, high;

	pthread_mutex_lock(&core->locks.lock);
	high = core->locks.high;
	pthread_mutex_unlock(&core->locks.lock);
	for (slot = FIRST_SLOT; slot < high; slot++) {
		bool valid;

		pthread_mutex_lock(&core->locks.lock);
		valid = lock_record(core, slot)->slot.valid == 1;
		if (valid)
			strike(core, slot);
		pthread_mutex_unlock(&core->locks.lock);
		if (valid)
			end(core, slot);
	}
}

/* A descriptor on which any lock can be set that some handle of the inode allows: the guest's kernel has checked that
 * its own is open for reading, or for writing. */
static int open_for_locks(struct core *core, uint64_t nodeid)
{
	static const uint32_t modes[] = {O_RDWR, O_RDONLY, O_WRONLY};
	int fd = -EBADF, i;

	for (i = 0; i < 3; i++) {
		fd = inode_open(core, nodeid, modes[i]);
		if (fd != -EACCES && fd != -EPERM && fd != -EROFS && fd != -ETXTBSY)
			break;
	}
	return fd;
}

uint32_t lock_pin(struct core *core, uint64_t nodeid, uint64_t owner)
{
	uint32_t slot;

	pthread_mutex_lock(&core->locks.lock);
	slot = find(core, nodeid, owner);
	if (slot)
		core->locks.private[slot].pins++;
	pthread_mutex_unlock(&core->locks.lock);
	return slot;
}

/* Called with the lock held. */
static uint32_t add(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in, int fd)
{
	/* As with inodes: nothing outlives a DESTROY. */
	uint32_t slot = core->config.session->mounted ? slots_take(&core->locks) : 0;
	struct lock_record *record;

	if (!slot)
		return 0;
	record = lock_record(core, slot);
	record->nodeid = nodeid;
	record->owner = in->owner;
	record->fh = in->fh;
	record->fd = fd;
	record->pid = in->lk.pid;
	core->locks.private[slot].pins = 1;
	index_lock(core, slot);
	slots_publish(&core->locks, slot);
	return slot;
}

int64_t lock_pin_or_add(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in)
{
	uint32_t slot = lock_pin(core, nodeid, in->owner);
	int fd;

	if (slot)
		return slot;
	fd = open_for_locks(core, nodeid);
	if (fd < 0)
		return fd;
	pthread_mutex_lock(&core->locks.lock);
	/* Another thread may have added it since. */
	slot = find(core, nodeid, in->owner);
	if (!slot && (slot = add(core, nodeid, in, fd)))
		fd = -1;
	if (slot)
		core->locks.private[slot].pins++;
	pthread_mutex_unlock(&core->locks.lock);
	if (fd >= 0)
		close(fd);
	return slot ? (int64_t)slot : -ENOLCK;
}

void lock_remember(struct core *core, uint32_t slot, const struct fuse_lk_in *in)
{
	struct lock_record *record = lock_record(core, slot);

	pthread_mutex_lock(&core->locks.lock);
	if (record->fh != in->fh)
		record->fh = SEVERAL;
	record->pid = in->lk.pid;
	pthread_mutex_unlock(&core->locks.lock);
}

uint32_t lock_owner_get(struct core *core, uint64_t nodeid, uint32_t index, struct lock_owner *owner)
{
	uint32_t slot;

	pthread_mutex_lock(&core->locks.lock);
	for (slot = *bucket_of(core, nodeid); slot; slot = core->locks.private[slot].next)
		if (lock_record(core, slot)->nodeid == nodeid && index-- == 0)
			break;
	if (slot) {
		const struct lock_record *record = lock_record(core, slot);

		*owner = (struct lock_owner){.owner = record->owner, .pid = record->pid, .fd = record->fd};
		core->locks.private[slot].pins++;
	}
	pthread_mutex_unlock(&core->locks.lock);
	return slot;
}

void lock_owner_put(struct core *core, uint32_t pinned)
{
	lock_put(core, pinned);
}

uint32_t state_next_owner(struct core *core, uint32_t slot, struct state_owner *owner)
{
	for (; slot && slot < core->locks.high; slot++) {
		const struct lock_record *record = lock_record(core, slot);

		if (record->slot.valid != 1)
			continue;
		*owner = (struct state_owner){
			.nodeid = record->nodeid, .owner = record->owner, .fh = record->fh, .pid = record->pid,
			.fd = record->fd,
		};
		return slot;
	}
	return 0;
}

uint64_t core_lock_count(struct core *core)
{
	uint64_t count;

	pthread_mutex_lock(&core->locks.lock);
	count = core->locks.count;
	pthread_mutex_unlock(&core->locks.lock);
	return count;
}

static void collect(void *opaque, const struct slot_record *slot_record, uint32_t slot)
{
	const struct lock_record *record = (const struct lock_record *)slot_record;

	if (plausible(record))
		collect_fd(opaque, record->fd);
}

void lock_descriptors(const struct core_config *config, struct collection *to)
{
	slots_walk(config->locks, config->locks_size, sizeof(struct lock_record), collect, to);
}
