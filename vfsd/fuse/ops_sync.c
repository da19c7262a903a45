/* FSYNC, FSYNCDIR, STATFS. */
#include "ops.h"

#include <errno.h>
#include <sys/statvfs.h>
#include <unistd.h>

int64_t op_fsync(struct core *core, struct fuse_request *request)
{
	const struct fuse_fsync_in *in = (const void *)request->arg;
	int fd = handle_get(core, in->fh);
	int error;

	if (fd < 0)
		return fd;
	if (later_possible(core, request) && !(inode_traits(core, request->header.nodeid, fd) & TRAIT_MEMORY) &&
	    later_serve(core, request->chain, LATER_SIDE_BY_SIDE)) {
		handle_put(core, in->fh);
		return VIRTQ_DEFERRED;
	}
	error = (in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd)) < 0 ? -errno : 0;
	handle_put(core, in->fh);
	return error;
}

int64_t op_statfs(struct core *core, struct fuse_request *request)
{
	struct fuse_statfs_out *out = (void *)request->reply;
	int fd = inode_get(core, request->header.nodeid, NULL);
	struct statvfs host;
	int error;

	if (fd < 0)
		return fd;
	error = fstatvfs(fd, &host) < 0 ? -errno : 0;
	inode_put(core, request->header.nodeid);
	if (error < 0)
		return error;
	*out = (struct fuse_statfs_out){.st = {
		.blocks = host.f_blocks, .bfree = host.f_bfree, .bavail = host.f_bavail, .files = host.f_files,
		.ffree = host.f_ffree, .bsize = (uint32_t)host.f_bsize, .namelen = (uint32_t)host.f_namemax,
		.frsize = (uint32_t)host.f_frsize,
	}};
	return sizeof(*out);
}
