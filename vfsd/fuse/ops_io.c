/* READ, WRITE: file data. It moves between the host's page cache and the guest's buffers by one system call: no copy of
 * ours. */
#include "ops.h"

#include "barrier.h"
#include "clock.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Bytes that one READ or WRITE moves at most: as one system call does (include/linux/fs.h, MAX_RW_COUNT). */
#define TRANSFER_MAX 0x7ffff000
/* Bytes whose copying takes some 50 us. */
#define WRITE_LONG (256 << 10)

struct transfer {
	bool write;
	int flags;   /* RWF_APPEND, RWF_NOWAIT or 0 */
	bool direct; /* the guest means to go past the page caches */
	bool waits;  /* set when there is more, for which RWF_NOWAIT would have to wait */
	const struct iovec *iov;
	uint32_t count;
	uint64_t skip;
	uint64_t offset;
	uint64_t size;
};

/* Moves [skip, skip + size) of the buffers from or to the file at `offset`. Goes on after a short transfer until the
 * end of the file or an error: a short READ tells the guest where the file ends (fs/fuse/file.c, fuse_short_read). */
static int64_t transfer(int fd, struct transfer *what)
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
				: preadv2(fd, scratch->iov, parts, what->offset + done, what->flags);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && (what->flags & RWF_NOWAIT)) {
			what->waits = true;
			break;
		}
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
static int64_t transfer_any(const struct core *core, int fd, struct transfer *what)
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

/* Whether a transfer goes to the disk and back: then its ring does not wait for it. */
static bool reaches_disk(const struct core *core, const struct transfer *what, uint32_t flags)
{
	return (what->direct && (core->config.flags & CORE_ALLOW_DIRECT_IO)) || (what->write && (flags & (O_SYNC | O_DSYNC)));
}

/* Goes on with what is not in the page cache, aside from the ring where that is possible. */
static int64_t read_on(struct core *core, struct fuse_request *request, int fd, struct transfer *what, uint64_t done)
{
	const struct fuse_read_in *in = (const void *)request->arg;
	/* The guest may have cleared O_DIRECT since: see reader.c for why it matters. */
	bool cached = !(core->config.flags & CORE_ALLOW_DIRECT_IO) || !(fcntl(fd, F_GETFL) & O_DIRECT);
	uint64_t begun;
	int64_t result;

	what->flags = 0;
	if (cached && request->chain->alone && reader_is_quick(core)) {
		may_last(core, request);
		begun = clock_ns();
		result = transfer(fd, what);
		reader_learn(core, begun);
		return result;
	}
	if (cached && reader_read(core, request, fd, in->fh, what->offset, what->size, done))
		return VIRTQ_DEFERRED;
	if (later_serve(core, request->chain, LATER_SIDE_BY_SIDE)) {
		handle_put(core, in->fh);
		return VIRTQ_DEFERRED;
	}
	may_last(core, request);
	return transfer_any(core, fd, what);
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
	bool aside = later_possible(core, request);
	uint8_t *plain;
	int64_t result;
	int fd;

	if (aside && reaches_disk(core, &what, in->flags) && later_serve(core, request->chain, LATER_SIDE_BY_SIDE))
		return VIRTQ_DEFERRED;
	fd = handle_get_data(core, in->fh, &plain);
	if (fd < 0)
		return fd;
	if (aside && !read_once(plain) && !(core->config.flags & CORE_READS_WAIT))
		what.flags = RWF_NOWAIT;
	result = transfer_any(core, fd, &what);
	if (result == -EOPNOTSUPP && what.flags) {
		write_once(plain, 1);
		what.flags = 0;
		result = transfer_any(core, fd, &what);
	}
	if (what.waits)
		result = read_on(core, request, fd, &what, result);
	if (result != VIRTQ_DEFERRED)
		handle_put(core, in->fh);
	return result;
}

/* A WRITE begins as a modification. The most frequent one, which keeps the bits where the host does not take them, costs
 * no look at the file. */
static int write_begin(struct core *core, struct fuse_request *request, int fd, struct priv *priv)
{
	const struct fuse_write_in *in = (const void *)request->arg;
	int kill = in->write_flags & FUSE_WRITE_KILL_SUIDGID ? PRIV_KILL : PRIV_KEEP;

	*priv = (struct priv){.fd = -1};
	if (kill == PRIV_KEEP && (core->config.flags & CORE_KEEPS_SET_ID) && !core->config.capability[0])
		return 0;
	priv->memo = once_memo(core, request);
	return priv_begin(core, fd, kill, request->header.uid, request->header.gid, priv);
}

static int64_t write_out(struct core *core, struct fuse_request *request, int fd, struct transfer *what)
{
	struct priv priv;
	int64_t result = write_begin(core, request, fd, &priv);

	if (result < 0)
		return result;
	result = transfer_any(core, fd, what);
	priv_end(core, &priv);
	return result;
}

/* Whether the file has at `offset` what is to be written. A handle for writing only is no way to look. */
static bool has_written(struct core *core, int fd, const struct transfer *what, uint64_t offset, uint64_t size)
{
	char *there = (char *)scratch_get()->dirents, *ours = there + DIRENTS_MAX / 2;
	int reader = reopen_surely(core, fd, O_RDONLY);
	bool same = true;
	uint64_t at;

	if (reader < 0)
		return true;
	for (at = 0; at < size && same; at += DIRENTS_MAX / 2) {
		uint64_t part = size - at < DIRENTS_MAX / 2 ? size - at : DIRENTS_MAX / 2;

		iov_gather(what->iov, what->count, what->skip + at, ours, part);
		same = pread(reader, there, part, offset + at) == (ssize_t)part && memcmp(there, ours, part) == 0;
	}
	close(reader);
	return same;
}

/* How much of a write that appends was written by a worker that died. Where the file ended before is in the memo, and the
 * host writes on from there in one go: what is there now is ours as far as it is the same, or nothing is. */
static int64_t appended(struct core *core, int fd, const struct transfer *what, struct memo *memo)
{
	struct stat stat;
	uint64_t size;

	if (fstat(fd, &stat) < 0)
		return -errno;
	if (!memo->has_fact)
		once_fact(memo, stat.st_size);
	if (stat.st_size <= memo->fact)
		return 0;
	size = stat.st_size - memo->fact;
	if (size > what->size)
		size = what->size;
	return has_written(core, fd, what, memo->fact, size) ? (int64_t)size : 0;
}

static int64_t append(struct core *core, struct fuse_request *request, int fd, struct transfer *what)
{
	struct memo *memo = once_memo(core, request);
	int64_t done = 0, result;

	what->flags = RWF_APPEND;
	if (memo)
		done = appended(core, fd, what, memo);
	if (done < 0 || (done && (uint64_t)done == what->size))
		return done;
	what->skip += done;
	what->size -= done;
	what->offset += done;
	result = write_out(core, request, fd, what);
	return result < 0 && !done ? result : done + (result > 0 ? result : 0);
}

/* Sends a WRITE aside that its ring had better not wait for: for the disk, or for so much to be copied that others
 * notice. Of the latter kind one at a time, since they would stand in each other's way: the host has one writer to a file. */
static bool write_aside(struct core *core, struct fuse_request *request, const struct transfer *what)
{
	const struct fuse_write_in *in = (const void *)request->arg;

	if (reaches_disk(core, what, in->flags))
		return later_serve(core, request->chain, LATER_SIDE_BY_SIDE);
	return what->size >= WRITE_LONG && !request->chain->alone && later_serve(core, request->chain, LATER_IN_TURN);
}

int64_t op_write(struct core *core, struct fuse_request *request)
{
	const struct fuse_write_in *in = (const void *)request->arg;
	const struct virtq_chain *chain = request->chain;
	bool cached = in->write_flags & FUSE_WRITE_CACHE;
	struct transfer what = {
		.write = true, .direct = (in->flags & O_DIRECT) && !cached,
		.iov = chain->in, .count = chain->in_count,
		.skip = sizeof(struct fuse_in_header) + sizeof(*in), .offset = in->offset, .size = in->size,
	};
	struct fuse_write_out *out = (void *)request->reply;
	int64_t result;
	int fd;

	if (in->size > request->header.len - what.skip)
		return -EINVAL;
	if (later_possible(core, request) && write_aside(core, request, &what))
		return VIRTQ_DEFERRED;
	fd = handle_get(core, in->fh);
	if (fd < 0)
		return fd;
	/* With the guest's page cache in between it is the guest that knows where the end is. */
	if ((in->flags & O_APPEND) && !cached && !negotiated(core, FUSE_WRITEBACK_CACHE))
		result = append(core, request, fd, &what);
	else
		result = write_out(core, request, fd, &what);
	handle_put(core, in->fh);
	if (result < 0)
		return result;
	*out = (struct fuse_write_out){.size = result};
	return sizeof(*out);
}
