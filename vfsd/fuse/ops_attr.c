/* SETATTR: truncate, chown, chmod and utimensat in one request.
 *
 * Rule 1. A new size or owner strips suid and sgid, and a new size sets mtime: each comes before what it would undo.
 * Rule 2. Everything is set through the inode's own descriptor, so that a name plays no part. A size alone may be set
 *         through a handle, which says that its caller may write.
 */
#include "ops.h"

#include <errno.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000
/* What is set, the ctime apart. That comes with the write-back cache only; the host's ctime is the host's. */
#define CHANGES (FATTR_SIZE | FATTR_UID | FATTR_GID | FATTR_MODE | FATTR_ATIME | FATTR_MTIME)
#define UNCHANGED UINT32_MAX

static int truncate_handle(struct core *core, uint64_t fh, uint64_t size)
{
	int fd = handle_get(core, fh), error;

	if (fd < 0)
		return fd;
	error = ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
	handle_put(core, fh);
	return error;
}

static int set_size(struct core *core, const struct fuse_request *request, int fd)
{
	const struct fuse_setattr_in *in = (const void *)request->arg;
	int kill = in->valid & FATTR_KILL_SUIDGID ? PRIV_KILL : PRIV_KEEP;
	struct priv priv = {.memo = request->memo};
	int error;

	if (in->size > INT64_MAX)
		return -EFBIG;
	/* Whoever opened the file has waited for its leases already. */
	if (!(in->valid & FATTR_FH))
		may_last(core, request);
	error = priv_begin(core, fd, kill, request->header.uid, request->header.gid, &priv);
	if (error < 0)
		return error;
	error = in->valid & FATTR_FH ? truncate_handle(core, in->fh, in->size) : truncate_fd(fd, in->size);
	if (error < 0)
		priv_refused(&priv);
	priv_end(core, &priv);
	return error;
}

static int change_owner(struct core *core, const struct fuse_request *request, int fd, uint32_t uid, uint32_t gid)
{
	struct priv priv = {.memo = request->memo};
	int error = priv_begin(core, fd, PRIV_KILL_OWNER, request->header.uid, request->header.gid, &priv);

	if (error < 0)
		return error;
	error = fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0 ? -errno : 0;
	if (error < 0)
		priv_refused(&priv);
	priv_end(core, &priv);
	return error;
}

static int set_owner(struct core *core, const struct fuse_request *request, int fd)
{
	const struct fuse_setattr_in *in = (const void *)request->arg;
	int64_t uid = in->valid & FATTR_UID ? id_to_set(core, CORE_UID, in->uid) : UNCHANGED;
	int64_t gid = in->valid & FATTR_GID ? id_to_set(core, CORE_GID, in->gid) : UNCHANGED;

	if (uid < 0 || gid < 0)
		return (int)(uid < 0 ? uid : gid);
	return change_owner(core, request, fd, (uint32_t)uid, (uint32_t)gid);
}

/* One timestamp; FUSE carries signed seconds in an unsigned field. 0 or -errno. */
static int time_of(uint64_t seconds, uint32_t nsec, bool given, bool now, struct timespec *to)
{
	*to = (struct timespec){.tv_nsec = now ? UTIME_NOW : UTIME_OMIT};
	if (now || !given)
		return 0;
	*to = (struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = nsec};
	return nsec < NSEC_PER_SEC ? 0 : -EINVAL;
}

static int set_times(const struct fuse_setattr_in *in, int fd)
{
	struct timespec times[2];
	int error;

	error = time_of(in->atime, in->atimensec, in->valid & FATTR_ATIME, in->valid & FATTR_ATIME_NOW, &times[0]);
	if (error == 0)
		error = time_of(in->mtime, in->mtimensec, in->valid & FATTR_MTIME, in->valid & FATTR_MTIME_NOW,
				&times[1]);
	if (error < 0)
		return error;
	return utimensat(fd, "", times, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* Whether a SETATTR of nothing is done on the host. It is chown(-1, -1), and sets the ctime and takes set-id bits.
 *
 * The bits not for everybody: what a kernel would refuse (fs/attr.c, setattr_prepare) the guest lets through
 * (fs/fuse/dir.c, fuse_setattr), and a guest with FUSE_ALLOW_IDMAP does not even tell who asks. Somebody else's may also
 * be the first half of a modification (fs/inode.c, file_remove_privs), whose second half suffices. */
static bool is_done(struct core *core, uint32_t uid, const struct stat *stat)
{
	if (S_ISDIR(stat->st_mode) || !(stat->st_mode & (S_ISUID | S_ISGID)))
		return true;
	return negotiated(core, FUSE_HANDLE_KILLPRIV_V2) &&
	       (uid == 0 || uid == id_to_guest(core, CORE_UID, stat->st_uid));
}

static int set_nothing(struct core *core, const struct fuse_request *request, int fd)
{
	struct stat stat;

	if (fstat(fd, &stat) < 0)
		return -errno;
	return is_done(core, request->header.uid, &stat) ? change_owner(core, request, fd, UNCHANGED, UNCHANGED) : 0;
}

static int set(struct core *core, const struct fuse_request *request, int fd, uint32_t type)
{
	const struct fuse_setattr_in *in = (const void *)request->arg;
	int error = 0;

	if (in->valid & FATTR_SIZE)
		error = set_size(core, request, fd);
	if (error == 0 && in->valid & (FATTR_UID | FATTR_GID))
		error = set_owner(core, request, fd);
	/* A symlink has no mode of its own. */
	if (error == 0 && in->valid & FATTR_MODE)
		error = type == S_IFLNK ? -EOPNOTSUPP : set_mode(core, fd, in->mode & 07777);
	if (error == 0 && in->valid & (FATTR_ATIME | FATTR_MTIME))
		error = set_times(in, fd);
	if (error == 0 && !(in->valid & CHANGES))
		error = set_nothing(core, request, fd);
	return error;
}

int64_t op_setattr(struct core *core, struct fuse_request *request)
{
	const struct fuse_setattr_in *in = (const void *)request->arg;
	struct fuse_attr_out *out = (void *)request->reply;
	uint64_t nodeid = request->header.nodeid;
	uint32_t type;
	int fd = inode_get(core, nodeid, &type), error;

	if (fd < 0)
		return fd;
	error = set(core, request, fd, type);
	if (error == 0)
		error = in->valid & FATTR_FH ? attr_by_handle(core, nodeid, in->fh, out)
					     : attr_by_fd(core, nodeid, fd, out);
	inode_put(core, nodeid);
	return error < 0 ? error : (int64_t)sizeof(*out);
}
