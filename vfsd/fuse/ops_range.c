/* FALLOCATE, LSEEK, COPY_FILE_RANGE, COPY_FILE_RANGE_64: what is done with ranges of open files besides READ and WRITE.
 *
 * Rule 1. FALLOCATE and COPY_FILE_RANGE change data, so suid and sgid have to go: `kills` says whose.
 * Rule 2. Whether a host has to wait for a disk or a server is not to be asked, and differs by file system and by what is in
 *         its cache. What short ones have taken lately tells: the ring serves them while that is little. What is long, and
 *         what nobody knows yet, goes aside.
 */
#include "ops.h"

#include "usual.h"

#include <errno.h>
#include <linux/falloc.h>
#include <unistd.h>

/* What a guest's kernel passes on (fs/fuse/file.c, fuse_file_fallocate). All may be done twice; COLLAPSE_RANGE and
 * INSERT_RANGE would shift a file twice when replayed. */
#define FALLOCATE_MODES (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)
/* The FUSE minor from which on a guest tells beforehand whether set-id bits have to go. */
#define MINOR_TELLS 38
/* A copy may be shorter than asked for. This much at once, 1 GiB: a reply that fits 32 bits, page-aligned. */
#define COPY_MAX (1 << 30)
/* Bytes whose copying takes some 30 us. */
#define RANGE_LONG (128 << 10)
/* What others on a ring wait for one that is served there, nanoseconds, at most, or once. */
#define QUICK 100000
/* The longest tells no more than that it was long, nanoseconds: its thread may not have had a processor meanwhile. */
#define SLOW (10 * QUICK)

/* PRIV_* of an op that carries no flag about its caller's CAP_FSETID: the bits go.
 *
 * Except for root, from the first kernels on that surely send a SETATTR beforehand where root lacks it (Linux 6.1, which
 * is FUSE 7.38; fs/fuse/file.c, fuse_file_fallocate: file_modified). */
static int kills(const struct core *core, const struct fuse_request *request)
{
	return core->config.session->minor >= MINOR_TELLS && request->header.uid == 0 ? PRIV_KEEP : PRIV_KILL;
}

/* Whether it was sent aside, before anything was done. */
static bool sent_aside(struct core *core, struct fuse_request *request, uint64_t size, const uint32_t *usual)
{
	if (size < RANGE_LONG && usually_within(usual, QUICK))
		return false;
	if (later_possible(core, request) && later_serve(core, request->chain, LATER_SIDE_BY_SIDE))
		return true;
	may_last(core, request);
	return false;
}

static int allocate(struct core *core, const struct fuse_request *request, int fd)
{
	const struct fuse_fallocate_in *in = (const void *)request->arg;
	struct priv priv = {.memo = request->memo};
	int error = priv_begin(core, fd, kills(core, request), request->header.uid, request->header.gid, &priv);

	if (error < 0)
		return error;
	error = fallocate(fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0 ? -errno : 0;
	if (error < 0)
		priv_refused(&priv);
	priv_end(core, &priv);
	return error;
}

int64_t op_fallocate(struct core *core, struct fuse_request *request)
{
	const struct fuse_fallocate_in *in = (const void *)request->arg;
	uint64_t begun;
	int fd, error;

	if (in->mode & ~FALLOCATE_MODES)
		return -EOPNOTSUPP;
	fd = handle_get(core, in->fh);
	if (fd < 0)
		return fd;
	if (sent_aside(core, request, in->length, &core->usual_fallocate)) {
		handle_put(core, in->fh);
		return VIRTQ_DEFERRED;
	}
	begun = clock_ns();
	error = allocate(core, request, fd);
	if (in->length < RANGE_LONG)
		usual_learn(&core->usual_fallocate, begun, SLOW);
	handle_put(core, in->fh);
	return error;
}

int64_t op_lseek(struct core *core, struct fuse_request *request)
{
	const struct fuse_lseek_in *in = (const void *)request->arg;
	struct fuse_lseek_out *out = (void *)request->reply;
	off_t offset;
	int fd;

	/* The guest asks without writing back what it has gathered (fs/fuse/file.c, fuse_lseek), so that we would call data a
	 * hole. Without us it takes everything for data. */
	if (negotiated(core, FUSE_WRITEBACK_CACHE))
		return -ENOSYS;
	/* The guest keeps file positions. It asks only where data and holes are. */
	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		return -EINVAL;
	fd = handle_get(core, in->fh);
	if (fd < 0)
		return fd;
	/* Negative: the guest asks all the same, and file systems say that no data is there (fs/ext4/file.c). */
	if (in->offset > INT64_MAX)
		offset = -ENXIO;
	else if ((offset = lseek(fd, (off_t)in->offset, (int)in->whence)) < 0)
		offset = -errno;
	handle_put(core, in->fh);
	if (offset < 0)
		return offset;
	*out = (struct fuse_lseek_out){.offset = offset};
	return sizeof(*out);
}

/* How much of what is asked for there was in the source before anything was done: a copy that makes its own source longer
 * copies no more of it. Or -errno. */
static int64_t to_copy(const struct fuse_request *request, int fd_in)
{
	const struct fuse_copy_file_range_in *in = (const void *)request->arg;
	struct memo *memo = request->memo;
	struct stat stat;
	int64_t length;

	if (memo && memo->has_fact)
		return memo->fact < 0 ? 0 : memo->fact;
	if (fstat(fd_in, &stat) < 0)
		return -errno;
	length = (uint64_t)stat.st_size > in->off_in ? stat.st_size - (int64_t)in->off_in : 0;
	if ((uint64_t)length > in->len)
		length = (int64_t)in->len;
	if (memo)
		once_fact(memo, length);
	return length;
}

static int64_t copy_between(struct core *core, const struct fuse_request *request, int fd_in, int fd_out)
{
	const struct fuse_copy_file_range_in *in = (const void *)request->arg;
	loff_t from = (loff_t)in->off_in, to = (loff_t)in->off_out;
	struct priv priv = {.memo = request->memo};
	int64_t result = priv_begin(core, fd_out, kills(core, request), request->header.uid, request->header.gid, &priv);

	if (result < 0)
		return result;
	result = to_copy(request, fd_in);
	if (result >= 0) {
		size_t length = result < COPY_MAX ? (size_t)result : COPY_MAX;

		do
			result = copy_file_range(fd_in, &from, fd_out, &to, length, 0);
		while (result < 0 && errno == EINTR);
		result = result < 0 ? -errno : result;
	}
	if (result < 0)
		priv_refused(&priv);
	priv_end(core, &priv);
	return result;
}

/* Bytes copied, or -errno. */
static int64_t copy(struct core *core, struct fuse_request *request)
{
	const struct fuse_copy_file_range_in *in = (const void *)request->arg;
	int fd_in, fd_out;
	uint64_t begun;
	int64_t result;

	if (in->flags || in->off_in > INT64_MAX || in->off_out > INT64_MAX)
		return -EINVAL;
	fd_in = handle_get(core, in->fh_in);
	if (fd_in < 0)
		return fd_in;
	fd_out = handle_get(core, in->fh_out);
	if (fd_out < 0) {
		result = fd_out;
	} else if (sent_aside(core, request, in->len, &core->usual_copy)) {
		result = VIRTQ_DEFERRED;
	} else {
		begun = clock_ns();
		result = copy_between(core, request, fd_in, fd_out);
		if (in->len < RANGE_LONG)
			usual_learn(&core->usual_copy, begun, SLOW);
	}
	if (fd_out >= 0)
		handle_put(core, in->fh_out);
	handle_put(core, in->fh_in);
	return result;
}

int64_t op_copy_file_range(struct core *core, struct fuse_request *request)
{
	struct fuse_write_out *out = (void *)request->reply;
	int64_t result = copy(core, request);

	if (result < 0)
		return result;
	*out = (struct fuse_write_out){.size = (uint32_t)result};
	return sizeof(*out);
}

int64_t op_copy_file_range_64(struct core *core, struct fuse_request *request)
{
	struct wire_copy_file_range_out *out = (void *)request->reply;
	int64_t result = copy(core, request);

	if (result < 0)
		return result;
	*out = (struct wire_copy_file_range_out){.bytes_copied = (uint64_t)result};
	return sizeof(*out);
}
