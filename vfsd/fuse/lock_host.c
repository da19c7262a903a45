/* Locks as the host sets them, without waiting. Who is refused may try again when the descriptor of lock_watch says that
 * something was freed, or later: what other daemons and the host's processes free, nobody tells us. */
#include "lock.h"

#include <errno.h>
#include <sys/file.h>

static int ofd_lock(int fd, int command, struct flock *lock)
{
	return fcntl(fd, command, lock) < 0 ? -errno : 0;
}

/* The guest's range has its last byte where struct flock has a length, 0 for "to the end, wherever that will be". */
static int to_host(const struct fuse_file_lock *lock, struct flock *host)
{
	if (lock->type != F_RDLCK && lock->type != F_WRLCK && lock->type != F_UNLCK)
		return -EINVAL;
	if (lock->end > LOCK_END || lock->start > lock->end)
		return -EINVAL;
	*host = (struct flock){.l_type = lock->type, .l_whence = SEEK_SET, .l_start = lock->start};
	if (lock->end < LOCK_END)
		host->l_len = lock->end - lock->start + 1;
	return 0;
}

static int unlock(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in, struct flock *host)
{
	uint32_t slot;
	int error;

	if (host->l_start == 0 && host->l_len == 0) {
		lock_release(core, nodeid, in->owner);
		return 0;
	}
	slot = lock_pin(core, nodeid, in->owner);
	if (!slot)
		return 0;
	error = ofd_lock(lock_record(core, slot)->fd, F_OFD_SETLK, host);
	lock_put(core, slot);
	lock_wake(core);
	return error;
}

/* What runs out here are locks, as far as a program can tell (fcntl(2), ENOLCK); and a lock for writing on a file that
 * the daemon may open for reading only can't be had. */
static int64_t no_locks(int64_t error)
{
	return error == -ENOMEM || error == -EMFILE || error == -ENFILE || error == -EBADF ? -ENOLCK : error;
}

int lock_set(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in)
{
	struct flock host;
	int64_t slot;
	int error = to_host(&in->lk, &host);

	if (error == 0)
		error = handle_get(core, in->fh);
	if (error < 0)
		return error;
	handle_put(core, in->fh);
	if (host.l_type == F_UNLCK)
		return unlock(core, nodeid, in, &host);
	slot = lock_pin_or_add(core, nodeid, in);
	if (slot < 0)
		return (int)no_locks(slot);
	error = ofd_lock(lock_record(core, slot)->fd, F_OFD_SETLK, &host);
	if (error == 0)
		lock_remember(core, slot, in);
	lock_put(core, slot);
	/* What it locked for writing before, others may now read. */
	if (error == 0 && host.l_type == F_RDLCK)
		lock_wake(core);
	return (int)no_locks(error);
}

int lock_test(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in, struct fuse_file_lock *found)
{
	struct flock host;
	uint32_t slot;
	int error = to_host(&in->lk, &host);
	int fd = error < 0 ? error : handle_get(core, in->fh);

	if (fd < 0)
		return fd;
	/* The handle's own file has no locks: to it every lock is somebody else's. */
	slot = lock_pin(core, nodeid, in->owner);
	error = ofd_lock(slot ? lock_record(core, slot)->fd : fd, F_OFD_GETLK, &host);
	if (slot)
		lock_put(core, slot);
	handle_put(core, in->fh);
	if (error < 0)
		return error;
	*found = (struct fuse_file_lock){.type = host.l_type};
	if (host.l_type == F_UNLCK)
		return 0;
	found->start = host.l_start;
	found->end = host.l_len ? (uint64_t)host.l_start + host.l_len - 1 : LOCK_END;
	return 0;
}

int lock_flock(struct core *core, const struct fuse_lk_in *in)
{
	int operation = in->lk.type == F_RDLCK ? LOCK_SH : in->lk.type == F_WRLCK ? LOCK_EX : LOCK_UN;
	int fd, error;

	if (operation == LOCK_UN && in->lk.type != F_UNLCK)
		return -EINVAL;
	fd = handle_get(core, in->fh);
	if (fd < 0)
		return fd;
	error = flock(fd, operation | LOCK_NB) < 0 ? -errno : 0;
	handle_put(core, in->fh);
	if (error == 0 && operation != LOCK_EX)
		lock_wake(core);
	return error;
}
