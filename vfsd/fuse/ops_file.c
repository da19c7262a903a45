/* OPEN, CREATE, READ, WRITE, FLUSH, RELEASE.
 *
 * Rule 1. Only regular files and directories are opened here. The guest's kernel opens FIFOs, sockets and devices
 *         itself, and to open one on the host may wait for ever or set something off.
 * Rule 2. File data moves between the host's page cache and the guest's buffers by one system call: no copy of ours.
 */
#include "internal.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Bytes that one READ or WRITE moves at most: as one system call does (include/linux/fs.h, MAX_RW_COUNT). */
#define TRANSFER_MAX 0x7ffff000

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

/* Only an owner may leave the time of access alone; who asks for it cares for the file's contents more. */
static int open_again(const struct core *core, int fd, uint32_t flags)
{
	int opened = reopen(core, fd, flags);

	return opened == -EPERM && (flags & O_NOATIME) ? reopen(core, fd, flags & ~(uint32_t)O_NOATIME) : opened;
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
		opened = check_room(core);
	if (opened == 0 && key.type == S_IFREG)
		opened = check_file_system(core, fd, key.dev);
	if (opened == 0)
		opened = open_again(core, fd, host_flags(core, flags));
	inode_put(core, nodeid);
	return opened;
}

int open_finish(struct core *core, uint64_t nodeid, int fd, uint32_t flags, struct fuse_open_out *out)
{
	int error;

	*out = (struct fuse_open_out){.open_flags = open_reply_flags(core, nodeid, fd, flags)};
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
	struct priv priv;
	int fd;

	if (path_fd < 0)
		return path_fd;
	fd = priv_begin(core, path_fd, truncation_kills(core, request, in->open_flags), request->header.uid,
			request->header.gid, &priv);
	if (fd == 0) {
		fd = inode_open(core, nodeid, in->flags & ~(uint32_t)O_DIRECTORY);
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

	fd = flags & O_TRUNC ? open_truncating(core, request, in) : inode_open(core, request->header.nodeid, flags);
	if (fd < 0)
		return fd;
	error = open_finish(core, request->header.nodeid, fd, flags, out);
	return error < 0 ? error : (int64_t)sizeof(*out);
}

/* Opens anew, as `request` asks for: one that truncates is a modification. */
static int reopen_modifying(struct core *core, const struct fuse_request *request, int fd, uint32_t flags,
			    uint32_t open_flags)
{
	struct priv priv;
	int opened;

	if (!(flags & O_TRUNC))
		return reopen(core, fd, flags);
	opened = priv_begin(core, fd, truncation_kills(core, request, open_flags), request->header.uid,
			    request->header.gid, &priv);
	if (opened < 0)
		return opened;
	opened = reopen(core, fd, flags);
	priv_end(core, &priv);
	return opened;
}

/* The file a CREATE found in its way. It is looked at before it is opened: rule 1. The guest, which did not know of it,
 * has checked access to the directory only: the host checks the file. */
static int open_existing(struct core *core, const struct fuse_request *request, int dir_fd, const char *name,
			 uint32_t flags)
{
	const struct fuse_create_in *in = (const void *)request->arg;
	int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct inode_key key;
	struct statx stat;
	int opened, dropped;

	if (fd < 0)
		return -errno;
	opened = stat_fd(fd, &stat);
	if (opened == 0) {
		key_of(&stat, &key);
		opened = key.type == S_IFDIR ? -EISDIR : check_type(key.type, flags);
	}
	if (opened == 0)
		opened = check_file_system(core, fd, key.dev);
	if (opened == 0) {
		dropped = cred_drop_dac_override();
		opened = reopen_modifying(core, request, fd, flags, in->open_flags);
		cred_restore_dac_override(dropped);
	}
	close(fd);
	return opened;
}

static int create_or_open(struct core *core, const struct fuse_request *request, int dir_fd, const char *name)
{
	const struct fuse_create_in *in = (const void *)request->arg;
	uint32_t flags = host_flags(core, in->flags & ~(uint32_t)O_DIRECTORY);
	/* A file the worker before us made for this very request is the one that was asked for. */
	bool exclusive = (in->flags & O_EXCL) && !request->replay;
	int fd, attempt;

	/* Between the two opens the host may remove the name; not for ever. */
	for (attempt = 0; attempt < 8; attempt++) {
		fd = openat(dir_fd, name, (flags & ~(uint32_t)O_TRUNC) | O_CREAT | O_EXCL | O_NOFOLLOW,
			    in->mode & 07777);
		if (fd >= 0)
			return fd;
		if (errno != EEXIST || exclusive)
			return -errno;
		fd = open_existing(core, request, dir_fd, name, flags);
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
	int dir_fd = inode_get(core, request->header.nodeid, NULL);
	int fd, error;

	if (dir_fd < 0)
		return dir_fd;
	fd = create_or_open(core, request, dir_fd, name);
	inode_put(core, request->header.nodeid);
	if (fd < 0)
		return fd;
	error = entry_from_fd(core, fd, entry);
	if (error < 0) {
		close(fd);
		return error;
	}
	error = open_finish(core, entry->nodeid, fd, in->flags & ~(uint32_t)O_DIRECTORY, open);
	if (error < 0) {
		inode_forget(core, entry->nodeid, 1);
		return error;
	}
	return sizeof(*entry) + sizeof(*open);
}

/* Moves [skip, skip + size) of the buffers from or to the file at `offset`. Goes on after a short transfer until the
 * end of the file or an error: a short READ tells the guest where the file ends (fs/fuse/file.c, fuse_short_read). */
static int64_t transfer(int fd, bool write, const struct iovec *iov, uint32_t count, uint64_t skip, uint64_t offset,
			uint64_t size)
{
	struct scratch *scratch = scratch_get();
	uint64_t done = 0;

	/* To preadv2 -1 is the descriptor's own position. */
	if (offset > INT64_MAX)
		return -EINVAL;
	if (size > TRANSFER_MAX)
		size = TRANSFER_MAX;
	while (done < size) {
		uint32_t parts;
		ssize_t n;

		if (!iov_split(iov, count, skip + done, size - done, scratch->iov, VIRTQ_MAX_CHAIN, &parts))
			break;
		n = write ? pwritev2(fd, scratch->iov, parts, offset + done, 0)
			  : preadv2(fd, scratch->iov, parts, offset + done, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			/* What was written is written; half a read is not the half before the end of the file. */
			return write && done ? (int64_t)done : -errno;
		if (n == 0)
			break;
		done += n;
	}
	return done;
}

int64_t op_read(struct core *core, struct fuse_request *request)
{
	const struct fuse_read_in *in = (const void *)request->arg;
	const struct virtq_chain *chain = request->chain;
	uint64_t room = chain->out_len - sizeof(struct fuse_out_header);
	int fd = handle_get(core, in->fh);
	int64_t result;

	if (fd < 0)
		return fd;
	result = transfer(fd, false, chain->out, chain->out_count, sizeof(struct fuse_out_header), in->offset,
			  in->size < room ? in->size : room);
	handle_put(core, in->fh);
	return result;
}

/* A write that may have been done already, on a handle that appends: it goes where the guest meant it to, so that it is
 * not appended twice. The flags to give back to the descriptor, or -1. */
static int stop_appending(int fd, bool replay)
{
	int flags = replay ? fcntl(fd, F_GETFL) : 0;

	if (flags < 0 || !(flags & O_APPEND) || fcntl(fd, F_SETFL, flags & ~O_APPEND) < 0)
		return -1;
	return flags;
}

int64_t op_write(struct core *core, struct fuse_request *request)
{
	const struct fuse_write_in *in = (const void *)request->arg;
	const struct virtq_chain *chain = request->chain;
	uint64_t skip = sizeof(struct fuse_in_header) + sizeof(*in);
	struct fuse_write_out *out = (void *)request->reply;
	struct priv priv;
	int64_t result;
	int fd, flags;

	if (in->size > request->header.len - skip)
		return -EINVAL;
	fd = handle_get(core, in->fh);
	if (fd < 0)
		return fd;
	result = priv_begin(core, fd, in->write_flags & FUSE_WRITE_KILL_SUIDGID ? PRIV_KILL : PRIV_KEEP,
			    request->header.uid, request->header.gid, &priv);
	if (result == 0) {
		flags = stop_appending(fd, request->replay);
		result = transfer(fd, true, chain->in, chain->in_count, skip, in->offset, in->size);
		if (flags >= 0)
			fcntl(fd, F_SETFL, flags);
		priv_end(core, &priv);
	}
	handle_put(core, in->fh);
	if (result < 0)
		return result;
	*out = (struct fuse_write_out){.size = result};
	return sizeof(*out);
}

/* What close(2) would report: some file systems tell of a failed write only there. And what it does: whichever of a
 * process's descriptors of a file is closed, all its POSIX locks on that file go. */
int64_t op_flush(struct core *core, struct fuse_request *request)
{
	const struct fuse_flush_in *in = (const void *)request->arg;
	int fd = handle_get(core, in->fh);
	int copy, error;

	lock_release(core, request->header.nodeid, in->lock_owner);
	if (fd < 0)
		return fd;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	error = copy < 0 || close(copy) < 0 ? -errno : 0;
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
	return request->replay && error == -EBADF ? 0 : error;
}
