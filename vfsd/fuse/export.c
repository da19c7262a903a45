/* LOOKUP of "." and "..", by which a guest's kernel opens a file handle (name_to_handle_at, NFS export): fs/fuse/inode.c,
 * fuse_get_dentry and fuse_get_parent.
 *
 * Rule 1. A guest's file handle holds a nodeid. An inode that the guest has forgotten is ESTALE: no later one has its
 *         nodeid.
 * Rule 2. A parent is only answered if the root of the share is above it, or is it: the host may have moved a directory
 *         that the guest knows out of the share.
 */
#include "inode.h"
#include "ops.h"

#include <errno.h>
#include <unistd.h>

/* Directories above one another that are looked at, before a path is taken for one without end. */
#define DEPTH_MAX 65536

static int open_up(struct core *core, int fd)
{
	return open_surely(core, fd, "..", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
}

/* Whether the share's root is this directory or above it. 1, 0 or -errno. */
static int is_inside(struct core *core, int fd)
{
	struct inode_key root = record_key(inode_record(core, FUSE_ROOT_ID)), key, below = {0};
	int up = -1, steps, result = 0;

	for (steps = 0; steps < DEPTH_MAX; steps++) {
		struct statx stat;
		int next;

		result = stat_fd(up < 0 ? fd : up, &stat);
		if (result < 0)
			break;
		key_of(&stat, &key);
		result = same_place(&key, &root);
		/* The root of everything is its own parent. */
		if (result || same_place(&key, &below))
			break;
		below = key;
		next = open_up(core, up < 0 ? fd : up);
		if (up >= 0)
			close(up);
		up = next;
		if (up < 0)
			return up;
	}
	if (up >= 0)
		close(up);
	return result;
}

static int entry_parent(struct core *core, int fd, struct fuse_entry_out *out)
{
	int up = open_up(core, fd), inside;

	/* What a mount does not reach any more has no parent (fs/namei.c, follow_dotdot). */
	if (up < 0)
		return up == -ENOENT ? -ESTALE : up;
	inside = is_inside(core, up);
	if (inside <= 0) {
		close(up);
		return inside < 0 ? inside : -ESTALE;
	}
	return entry_new(core, NULL, up, out);
}

int entry_dots(struct core *core, uint64_t nodeid, const char *name, struct fuse_entry_out *out)
{
	bool self = name[1] == 0 || nodeid == FUSE_ROOT_ID;
	struct inode_key key;
	int error, fd;

	error = make_room(core, 2);
	if (error < 0)
		return error;
	fd = inode_get_key(core, nodeid, &key);
	if (fd < 0)
		return fd;
	/* The table holds an inode by the key of its descriptor: this leads to the same record. */
	if (self)
		error = entry_from_fd(core, fd, out);
	else
		error = key.type == S_IFDIR ? entry_parent(core, fd, out) : -ENOTDIR;
	inode_put(core, nodeid);
	return error;
}
