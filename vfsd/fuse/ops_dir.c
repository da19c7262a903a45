/* OPENDIR, READDIR, READDIRPLUS, RELEASEDIR.
 *
 * Rule 1. A directory's position belongs to its descriptor, and every request brings its own: seek and read are one
 *         step, under one of a few locks shared by all handles. It is the only lock held over a system call; nothing is
 *         locked after it, and a guest reads one open directory from one task at a time anyway (f_pos_lock).
 * Rule 2. An entry raises nlookup only when it is in the reply.
 */
#include "ops.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* struct linux_dirent64 (getdents64(2)), which no header of libc declares. */
struct host_dirent {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* Enough for any one entry: 19 bytes, a name of 1024 (serve.c), its NUL, alignment. */
#define DIRENTS_MIN 1088

int64_t op_opendir(struct core *core, struct fuse_request *request)
{
	struct fuse_open_out *out = (void *)request->reply;
	int fd = inode_open(core, request->header.nodeid, O_RDONLY | O_DIRECTORY);
	int error;

	if (fd < 0)
		return fd;
	error = open_finish(core, request->header.nodeid, fd, O_DIRECTORY, false, out);
	return error < 0 ? error : (int64_t)sizeof(*out);
}

int64_t op_releasedir(struct core *core, struct fuse_request *request)
{
	return op_release(core, request);
}

static int64_t read_entries(struct core *core, uint64_t fh, int fd, uint64_t offset, void *buf, uint32_t size)
{
	pthread_mutex_t *lock = &core->position[fh % POSITION_LOCKS];
	int64_t n = -1;

	pthread_mutex_lock(lock);
	if (lseek(fd, (off_t)offset, SEEK_SET) >= 0)
		n = syscall(SYS_getdents64, fd, buf, size);
	if (n < 0)
		n = -errno;
	pthread_mutex_unlock(lock);
	return n;
}

struct reply {
	uint8_t *at;
	uint32_t used;
	uint32_t size;
};

/* Room for `head` bytes, a struct fuse_dirent and its name, zeroed. NULL when it does not fit. */
static uint8_t *reserve(struct reply *reply, uint32_t head, uint32_t name_len)
{
	uint32_t size = FUSE_REC_ALIGN(head + FUSE_NAME_OFFSET + name_len);
	uint8_t *at = reply->at + reply->used;

	if (size > reply->size - reply->used)
		return NULL;
	memset(at, 0, size);
	reply->used += size;
	return at;
}

static void fill_dirent(struct fuse_dirent *to, const struct host_dirent *from, uint32_t name_len)
{
	to->ino = from->ino;
	to->off = from->off;
	to->namelen = name_len;
	to->type = from->type;
	memcpy(to->name, from->name, name_len);
}

static bool emit(struct reply *reply, const struct host_dirent *entry)
{
	uint32_t len = strlen(entry->name);
	uint8_t *at = reserve(reply, 0, len);

	if (at)
		fill_dirent((struct fuse_dirent *)at, entry, len);
	return at != NULL;
}

/* nodeid 0 says "no entry here, look it up" (fs/fuse/readdir.c, fuse_direntplus_link): for the dots, and for what went,
 * or cannot be reached, since it was read. */
static bool emit_plus(struct core *core, struct reply *reply, const struct directory *dir,
		      const struct host_dirent *entry)
{
	uint32_t len = strlen(entry->name);
	struct fuse_direntplus *plus =
		(void *)reserve(reply, offsetof(struct fuse_direntplus, dirent), len);

	if (!plus)
		return false;
	fill_dirent(&plus->dirent, entry, len);
	if (is_dots(entry->name))
		return true;
	if (entry_at(core, dir, entry->name, false, &plus->entry_out) == 0)
		plus->dirent.type = (plus->entry_out.attr.mode & S_IFMT) >> 12;
	return true;
}

/* How much to read so that it just about fills the reply: a READDIRPLUS record is five times the host's, or more. */
static uint32_t host_size(uint32_t size, bool plus)
{
	if (plus)
		size /= 5;
	if (size < DIRENTS_MIN)
		return DIRENTS_MIN;
	return size < DIRENTS_MAX ? size : DIRENTS_MAX;
}

static int64_t read_directory(struct core *core, struct fuse_request *request, struct directory *dir)
{
	const struct fuse_read_in *in = (const void *)request->arg;
	uint32_t size = in->size < request->reply_max ? in->size : request->reply_max;
	struct reply reply = {.at = request->reply, .size = size};
	char *buf = (char *)scratch_get()->dirents;
	int fd = handle_get(core, in->fh);
	int64_t n, at;

	if (fd < 0)
		return fd;
	if (dir)
		dir->fd = fd;
	n = read_entries(core, in->fh, fd, in->offset, buf, host_size(size, dir != NULL));
	for (at = 0; at < n;) {
		const struct host_dirent *entry = (const void *)(buf + at);

		if (!(dir ? emit_plus(core, &reply, dir, entry) : emit(&reply, entry)))
			break;
		at += entry->reclen;
	}
	handle_put(core, in->fh);
	if (n < 0)
		return n;
	/* An empty reply is the end of the directory; an entry that fits nowhere is not. */
	return n > 0 && reply.used == 0 ? -EINVAL : (int64_t)reply.used;
}

int64_t op_readdir(struct core *core, struct fuse_request *request)
{
	return read_directory(core, request, NULL);
}

int64_t op_readdirplus(struct core *core, struct fuse_request *request)
{
	struct directory dir = {.nodeid = request->header.nodeid};
	int fd = inode_get_key(core, dir.nodeid, &dir.key);
	int64_t result;

	if (fd < 0)
		return fd;
	result = read_directory(core, request, &dir);
	inode_put(core, request->header.nodeid);
	return result;
}
