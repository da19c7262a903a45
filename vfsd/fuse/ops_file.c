/* OPEN, CREATE, FLUSH, RELEASE.
 *
 * Rule 1. Only regular files and directories are opened here. The guest's kernel opens FIFOs, sockets and devices
 *         itself, and to open one on the host may wait for ever or set something off.
 */
#include "ops.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

static bool writes(uint32_t flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

uint32_t host_flags(const struct core *core, uint32_t flags)
{
	uint32_t allowed = O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_NONBLOCK | O_DIRECTORY;

	if (core->config.flags & CORE_ALLOW_DIRECT_IO)
		allowed |= O_DIRECT;
	if (core->config.flags & CORE_PRESERVE_NOATIME)
		allowed |= O_NOATIME;
	/* Nothing is to change on the host, times of access neither. */
	if (core->config.flags & CORE_READONLY) {
		allowed |= O_NOATIME;
		flags |= O_NOATIME;
	}
	/* The guest's page cache reads what it writes part of, and knows itself where the end is. */
	if (negotiated(core, FUSE_WRITEBACK_CACHE)) {
		allowed &= ~O_APPEND;
		if ((flags & O_ACCMODE) == O_WRONLY)
			flags = (flags & ~O_ACCMODE) | O_RDWR;
	}
	return (flags & allowed) | O_CLOEXEC;
}

static int check_type(uint32_t type, uint32_t flags)
{
	if ((flags & O_DIRECTORY) && type != S_IFDIR)
		return -ENOTDIR;
	if (type == S_IFLNK)
		return -ELOOP;
	return type == S_IFREG || type == S_IFDIR ? 0 : -ENXIO;
}

/* A proc mount in the share would lend the guest the memory of this very process (/proc/PID/mem). What lies on the
 * share's own file system need not be asked. */
static int check_file_system(const struct core *core, int fd, uint64_t dev)
{
	struct statfs fs;

	if (dev == core->root_dev)
		return 0;
	if (fstatfs(fd, &fs) < 0)
		return -errno;
	return fs.f_type == PROC_SUPER_MAGIC ? -EACCES : 0;
}

/* Whether a write appends it says itself: a page of a mapping does not, and may come on any handle. Only files that can
 * but grow (chattr +a) are opened no other way. And only an owner may leave the time of access alone; who asks for it
 * cares for the file's contents more. */
static int open_again(struct core *core, int fd, uint32_t flags)
{
	const uint32_t append = O_APPEND, noatime = O_NOATIME;
	int opened = reopen_surely(core, fd, flags & ~append);

	if (opened == -EPERM && (flags & append))
		opened = reopen_surely(core, fd, flags);
	if (opened == -EPERM && (flags & noatime))
		opened = open_again(core, fd, flags & ~noatime);
	return opened;
}

int inode_open(struct core *core, uint64_t nodeid, uint32_t flags)
{
	struct inode_key key;
	int fd, opened;

	if ((core->config.flags & CORE_READONLY) && writes(flags))
		return -EROFS;
	fd = inode_get_key(core, nodeid, &key);
	if (fd < 0)
		return fd;
	opened = check_type(key.type, flags);
	if (opened == 0)
		opened = make_room_for_handle(core);
	if (opened == 0 && key.type == S_IFREG)
		opened = check_file_system(core, fd, key.dev);
	if (opened == 0)
		opened = open_again(core, fd, host_flags(core, flags));
	inode_put(core, nodeid);
	return opened;
}

int open_finish(struct core *core, uint64_t nodeid, int fd, uint32_t flags, bool made, struct fuse_open_out *out)
{
	int error;

	*out = (struct fuse_open_out){.open_flags = open_reply_flags(core, nodeid, fd, flags, made)};
	error = handle_add(core, nodeid, fd, &out->fh);
	if (error < 0)
		close(fd);
	return error;
}

/* An open that truncates is a modification. */
static int open_truncating(struct core *core, const struct fuse_request *request, const struct fuse_open_in *in)
{
	uint64_t nodeid = request->header.nodeid;
	int path_fd = inode_get(core, nodeid, NULL);
	struct priv priv = {.memo = request->memo};
	int fd;

	if (path_fd < 0)
		return path_fd;
	fd = priv_begin(core, path_fd, truncation_kills(core, request, in->open_flags), request->header.uid,
			request->header.gid, &priv);
	if (fd == 0) {
		fd = inode_open(core, nodeid, in->flags & ~(uint32_t)O_DIRECTORY);
		if (fd < 0)
			priv_refused(&priv);
		priv_end(core, &priv);
	}
	inode_put(core, nodeid);
	return fd;
}

int64_t op_open(struct core *core, struct fuse_request *request)
{
	const struct fuse_open_in *in = (const void *)request->arg;
	struct fuse_open_out *out = (void *)request->reply;
	uint32_t flags = in->flags & ~(uint32_t)O_DIRECTORY;
	int fd, error;

	/* For whoever has a lease on the file. */
	may_last(core, request);
	fd = flags & O_TRUNC ? open_truncating(core, request, in) : inode_open(core, request->header.nodeid, flags);
	if (fd < 0)
		return fd;
	error = open_finish(core, request->header.nodeid, fd, flags, false, out);
	return error < 0 ? error : (int64_t)sizeof(*out);
}

/* Opens anew, as `request` asks for: one that truncates is a modification. */
static int reopen_modifying(struct core *core, const struct fuse_request *request, int fd, uint32_t flags,
			    uint32_t open_flags)
{
	struct priv priv = {.memo = request->memo};
	int opened;

	if (!(flags & O_TRUNC))
		return open_again(core, fd, flags);
	opened = priv_begin(core, fd, truncation_kills(core, request, open_flags), request->header.uid,
			    request->header.gid, &priv);
	if (opened < 0)
		return opened;
	opened = open_again(core, fd, flags);
	if (opened < 0)
		priv_refused(&priv);
	priv_end(core, &priv);
	return opened;
}

/* The file a CREATE found in its way. It is looked at before it is opened: rule 1. The guest, which did not know of it,
 * has checked access to the directory only: the host checks the file. */
static int open_existing(struct core *core, const struct fuse_request *request, int dir_fd, const char *name,
			 uint32_t flags)
{
	const struct fuse_create_in *in = (const void *)request->arg;
	int fd = open_surely(core, dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
	struct inode_key key;
	struct statx stat;
	int opened, dropped;

	if (fd < 0)
		return fd;
	opened = stat_fd(fd, &stat);
	if (opened == 0) {
		key_of(&stat, &key);
		opened = key.type == S_IFDIR ? -EISDIR : check_type(key.type, flags);
	}
	if (opened == 0)
		opened = check_file_system(core, fd, key.dev);
	if (opened == 0) {
		/* For whoever has a lease on the file, which nobody has on a new one. */
		may_last(core, request);
		dropped = cred_drop_dac_override();
		opened = reopen_modifying(core, request, fd, flags, in->open_flags);
		cred_restore_dac_override(dropped);
	}
	close(fd);
	return opened;
}

/* Opens what a file's mode may forbid to open: the mode is another one meanwhile. `memo` knows the right one until it is
 * there again. */
static int open_forbidden(struct core *core, struct memo *memo, int fd, uint32_t flags)
{
	uint32_t raised = cred_raise_owner();
	struct stat stat;
	int opened;

	if (!memo->has_fact)
		once_fact(memo, fstat(fd, &stat) == 0 ? (int64_t)(stat.st_mode & 07777) : memo->fact);
	set_mode(core, fd, memo->fact | S_IRUSR | S_IWUSR);
	opened = reopen_surely(core, fd, flags);
	set_mode(core, fd, memo->fact);
	cred_lower_owner(raised);
	return opened;
}

/* The file that a worker before us made for this very request. Whoever makes a file has it open, whatever its mode. */
static int open_made(struct core *core, const struct fuse_request *request, int dir_fd, const char *name,
		     uint32_t flags)
{
	int fd = open_surely(core, dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
	int opened;

	if (fd < 0)
		return fd;
	opened = request->memo->has_fact ? -EACCES : reopen_surely(core, fd, flags);
	if (opened == -EACCES)
		opened = open_forbidden(core, request->memo, fd, flags);
	close(fd);
	return opened;
}

static int create_or_open(struct core *core, struct fuse_request *request, int dir_fd, const char *name)
{
	const struct fuse_create_in *in = (const void *)request->arg;
	uint32_t flags = host_flags(core, in->flags & ~(uint32_t)O_DIRECTORY);
	bool exclusive = in->flags & O_EXCL;
	int fd, attempt;

	if (request->made)
		return open_made(core, request, dir_fd, name, flags & ~(uint32_t)(O_TRUNC | O_APPEND));

	/* Between the two opens the host may remove the name; not for ever. */
	for (attempt = 0; attempt < 8; attempt++) {
		fd = open_surely(core, dir_fd, name, (flags & ~(uint32_t)(O_TRUNC | O_APPEND)) | O_CREAT | O_EXCL | O_NOFOLLOW,
				 in->mode & 07777);
		if (fd != -EEXIST || exclusive)
			return fd;
		fd = open_existing(core, request, dir_fd, name, flags);
		request->found = fd >= 0;
		if (fd != -ENOENT)
			return fd;
	}
	return -ENOENT;
}

int64_t op_create(struct core *core, struct fuse_request *request)
{
	const struct fuse_create_in *in = (const void *)request->arg;
	const char *name = (const char *)(in + 1);
	struct fuse_entry_out *entry = (void *)request->reply;
	struct fuse_open_out *open = (void *)(entry + 1);
	int fd = create_or_open(core, request, request->dir->fd, name), error;

	if (fd < 0)
		return fd;
	error = entry_from_fd(core, fd, entry);
	if (error < 0) {
		close(fd);
		return error;
	}
	error = open_finish(core, entry->nodeid, fd, in->flags & ~(uint32_t)O_DIRECTORY, !request->found, open);
	if (error < 0) {
		inode_forget(core, entry->nodeid, 1);
		return error;
	}
	return sizeof(*entry) + sizeof(*open);
}

/* Closes a copy of a descriptor. */
static int close_copy(struct core *core, int fd)
{
	int copy;

	do
		copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	while (copy < 0 && out_of_descriptors(core, -errno));
	return copy < 0 || close(copy) < 0 ? -errno : 0;
}

/* What close(2) would report: some file systems tell of a failed write only there. And what it does: whichever of a
 * process's descriptors of a file is closed, all its POSIX locks on that file go. */
int64_t op_flush(struct core *core, struct fuse_request *request)
{
	const struct fuse_flush_in *in = (const void *)request->arg;
	int fd = handle_get(core, in->fh), error = 0;

	lock_release(core, request->header.nodeid, in->lock_owner);
	if (fd < 0)
		return fd;
	if (!(inode_traits(core, request->header.nodeid, fd) & TRAIT_CLOSES))
		error = close_copy(core, fd);
	handle_put(core, in->fh);
	return error;
}

int64_t op_release(struct core *core, struct fuse_request *request)
{
	const struct fuse_release_in *in = (const void *)request->arg;
	int error;

	/* Locks whose owner is the guest's open file itself (F_OFD_SETLK) are told of by no FLUSH. */
	lock_release_handle(core, request->header.nodeid, in->fh);
	error = handle_release(core, in->fh);
	if (in->release_flags & FUSE_RELEASE_FLOCK_UNLOCK)
		lock_wake(core);
	/* A worker that died may have done it. */
	return request->chain->replay && error == -EBADF ? 0 : error;
}
