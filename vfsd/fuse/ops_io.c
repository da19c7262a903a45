/* READ, WRITE: file data. It moves between the host's page cache and the guest's buffers by one system call: no copy of
 * ours. */
#include "internal.h"

#include <errno.h>
#include <unistd.h>

/* Bytes that one READ or WRITE moves at most: as one system call does (include/linux/fs.h, MAX_RW_COUNT). */
#define TRANSFER_MAX 0x7ffff000

struct transfer {
	bool write;
	int flags;   /* RWF_APPEND or 0 */
	bool direct; /* the guest means to go past the page caches */
	const struct iovec *iov;
	uint32_t count;
	uint64_t skip;
	uint64_t offset;
	uint64_t size;
};

/* Moves [skip, skip + size) of the buffers from or to the file at `offset`. Goes on after a short transfer until the
 * end of the file or an error: a short READ tells the guest where the file ends (fs/fuse/file.c, fuse_short_read). */
static int64_t transfer(int fd, const struct transfer *what)
{
	uint64_t size = what->size < TRANSFER_MAX ? what->size : TRANSFER_MAX;
	struct scratch *scratch = scratch_get();
	uint64_t done = 0;

	/* To preadv2 -1 is the descriptor's own position. */
	if (what->offset > INT64_MAX)
		return -EINVAL;
	while (done < size) {
		uint32_t parts;
		ssize_t n;

		if (!iov_split(what->iov, what->count, what->skip + done, size - done, scratch->iov, VIRTQ_MAX_CHAIN,
			       &parts))
			break;
		n = what->write ? pwritev2(fd, scratch->iov, parts, what->offset + done, what->flags)
				: preadv2(fd, scratch->iov, parts, what->offset + done, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			/* What was written is written; half a read is not the half before the end of the file. */
			return what->write && done ? (int64_t)done : -errno;
		if (n == 0)
			break;
		done += n;
	}
	return done;
}

/* Pages of a mapping, and whatever is done when O_DIRECT was cleared since, come on the handle that was opened with it,
 * with any length. The host refuses what its disk can't do: then it is done as the guest meant it. */
static int64_t transfer_any(const struct core *core, int fd, const struct transfer *what)
{
	int64_t result = transfer(fd, what);
	int flags, buffered;

	if (result != -EINVAL || what->direct || !(core->config.flags & CORE_ALLOW_DIRECT_IO))
		return result;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || !(flags & O_DIRECT))
		return result;
	buffered = reopen_surely(core, fd, flags & (O_ACCMODE | O_APPEND | O_SYNC | O_NOATIME));
	if (buffered < 0)
		return result;
	result = transfer(buffered, what);
	close(buffered);
	return result;
}

int64_t op_read(struct core *core, struct fuse_request *request)
{
	const struct fuse_read_in *in = (const void *)request->arg;
	const struct virtq_chain *chain = request->chain;
	uint64_t room = chain->out_len - sizeof(struct fuse_out_header);
	struct transfer what = {
		.direct = in->flags & O_DIRECT, .iov = chain->out, .count = chain->out_count,
		.skip = sizeof(struct fuse_out_header), .offset = in->offset,
		.size = in->size < room ? in->size : room,
	};
	int fd = handle_get(core, in->fh);
	int64_t result;

	if (fd < 0)
		return fd;
	result = transfer_any(core, fd, &what);
	handle_put(core, in->fh);
	return result;
}

/* Whether a write goes to the end, wherever that is. With the guest's page cache in between it is the guest that knows
 * where the end is; and one that may have been done already goes where the guest took the end to be, so as not to be
 * appended twice. */
static bool appends(const struct core *core, const struct fuse_request *request)
{
	const struct fuse_write_in *in = (const void *)request->arg;

	return (in->flags & O_APPEND) && !(in->write_flags & FUSE_WRITE_CACHE) &&
	       !negotiated(core, FUSE_WRITEBACK_CACHE) && !request->replay;
}

/* A WRITE begins as a modification. The most frequent one, which keeps the bits where the host does not take them, costs
 * no look at the file. */
static int write_begin(struct core *core, const struct fuse_request *request, int fd, struct priv *priv)
{
	const struct fuse_write_in *in = (const void *)request->arg;
	int kill = in->write_flags & FUSE_WRITE_KILL_SUIDGID ? PRIV_KILL : PRIV_KEEP;

	*priv = (struct priv){.fd = -1};
	if (kill == PRIV_KEEP && (core->config.flags & CORE_KEEPS_SET_ID) && !core->config.capability[0])
		return 0;
	return priv_begin(core, fd, kill, request->header.uid, request->header.gid, priv);
}

int64_t op_write(struct core *core, struct fuse_request *request)
{
	const struct fuse_write_in *in = (const void *)request->arg;
	const struct virtq_chain *chain = request->chain;
	struct transfer what = {
		.write = true, .flags = appends(core, request) ? RWF_APPEND : 0, .direct = (in->flags & O_DIRECT) && !(in->write_flags & FUSE_WRITE_CACHE),
		.iov = chain->in, .count = chain->in_count,
		.skip = sizeof(struct fuse_in_header) + sizeof(*in), .offset = in->offset, .size = in->size,
	};
	struct fuse_write_out *out = (void *)request->reply;
	struct priv priv;
	int64_t result;
	int fd;

	if (in->size > request->header.len - what.skip)
		return -EINVAL;
	fd = handle_get(core, in->fh);
	if (fd < 0)
		return fd;
	result = write_begin(core, request, fd, &priv);
	if (result == 0) {
		result = transfer_any(core, fd, &what);
		priv_end(core, &priv);
	}
	handle_put(core, in->fh);
	if (result < 0)
		return result;
	*out = (struct fuse_write_out){.size = result};
	return sizeof(*out);
}
