/* MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, RENAME2, READLINK: names in directories.
 *
 * Rule 1. A name is used relative to its directory's descriptor, which is pinned as request->dir, and serve.c has checked
 *         that it is one: not empty, without a slash, not `.` or `..`. Nothing here follows a symlink, so nothing leaves
 *         the share.
 * Rule 2. What was done already by a worker that died is not done again: such a request does not come here (once.c).
 */
#include "ops.h"

#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What of a guest's 32 bits is a mode: type and permissions. */
#define MODE 0177777
#define RENAME_FLAGS (RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)

/* The reply of what made a name, with `made` as its system call returned. */
static int64_t name_made(struct core *core, struct fuse_request *request, const char *name, int made)
{
	int error = made < 0 ? -errno : entry_made(core, request->dir, name, (struct fuse_entry_out *)request->reply);

	return error < 0 ? error : (int64_t)sizeof(struct fuse_entry_out);
}

int64_t op_mknod(struct core *core, struct fuse_request *request)
{
	const struct fuse_mknod_in *in = (const void *)request->arg;
	const char *name = (const char *)(in + 1);

	/* rdev has the layout of dev_t's low 32 bits: new_encode_dev() in the kernel, makedev(3) here. */
	return name_made(core, request, name, mknodat(request->dir->fd, name, in->mode & MODE, in->rdev));
}

int64_t op_mkdir(struct core *core, struct fuse_request *request)
{
	const struct fuse_mkdir_in *in = (const void *)request->arg;
	const char *name = (const char *)(in + 1);

	return name_made(core, request, name, mkdirat(request->dir->fd, name, in->mode & MODE));
}

int64_t op_symlink(struct core *core, struct fuse_request *request)
{
	const char *name = (const char *)request->arg, *target = name + strlen(name) + 1;

	return name_made(core, request, name, symlinkat(target, request->dir->fd, name));
}

int64_t op_link(struct core *core, struct fuse_request *request)
{
	const struct fuse_link_in *in = (const void *)request->arg;
	const char *name = (const char *)(in + 1);
	int fd = inode_get(core, in->oldnodeid, NULL), error;

	if (fd < 0)
		return fd;
	error = link_fd(core, fd, request->dir->fd, name);
	if (error == 0)
		error = entry_at(core, request->dir, name, true, (struct fuse_entry_out *)request->reply);
	inode_put(core, in->oldnodeid);
	return error < 0 ? error : (int64_t)sizeof(struct fuse_entry_out);
}

/* What the first name of a request leads to, looked at just now; or NULL. */
static const struct memo_name *seen(const struct fuse_request *request)
{
	return request->memo && !request->chain->replay ? &request->memo->name : NULL;
}

static int64_t remove_name(struct core *core, const struct fuse_request *request, int flags)
{
	const char *name = (const char *)request->arg;
	int dir_fd = request->dir->fd, error;
	uint64_t moving = inode_moving(core, dir_fd, name, seen(request));

	error = unlinkat(dir_fd, name, flags) < 0 ? -errno : 0;
	inode_moved(core, moving);
	return error;
}

int64_t op_unlink(struct core *core, struct fuse_request *request)
{
	return remove_name(core, request, 0);
}

int64_t op_rmdir(struct core *core, struct fuse_request *request)
{
	return remove_name(core, request, AT_REMOVEDIR);
}

static int64_t rename_name(struct core *core, const struct fuse_request *request, uint64_t newdir, const char *name,
			   uint32_t flags)
{
	const char *newname = name + strlen(name) + 1;
	int dir_fd = request->dir->fd, newdir_fd = inode_get(core, newdir, NULL), error;
	uint64_t moving, replaced;

	if (newdir_fd < 0)
		return newdir_fd;
	moving = inode_moving(core, dir_fd, name, seen(request));
	replaced = inode_moving(core, newdir_fd, newname, NULL);
	error = syscall(SYS_renameat2, dir_fd, name, newdir_fd, newname, flags) < 0 ? -errno : 0;
	inode_moved(core, replaced);
	inode_moved(core, moving);
	inode_put(core, newdir);
	return error;
}

int64_t op_rename(struct core *core, struct fuse_request *request)
{
	const struct fuse_rename_in *in = (const void *)request->arg;

	return rename_name(core, request, in->newdir, (const char *)(in + 1), 0);
}

int64_t op_rename2(struct core *core, struct fuse_request *request)
{
	const struct fuse_rename2_in *in = (const void *)request->arg;

	if (in->flags & ~RENAME_FLAGS)
		return -EINVAL;
	return rename_name(core, request, in->newdir, (const char *)(in + 1), in->flags);
}

int64_t op_readlink(struct core *core, struct fuse_request *request)
{
	int fd = inode_get(core, request->header.nodeid, NULL);
	int64_t n;

	if (fd < 0)
		return fd;
	n = readlinkat(fd, "", (char *)request->reply, PATH_MAX);
	/* ENOENT is what another type gets by descriptor. */
	if (n < 0)
		n = errno == ENOENT ? -EINVAL : -errno;
	inode_put(core, request->header.nodeid);
	return n > request->reply_max ? -EINVAL : n;
}
