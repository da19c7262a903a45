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
/* Of a name of 255 bytes. Who had room for that, and got no more, has read all there is, mostly. */
#define DIRENT_LONG 280

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

void position_forget(struct core *core, uint64_t fh)
{
	struct position *position = &core->position[fh % POSITIONS];

	pthread_mutex_lock(&position->lock);
	position->fh = 0;
	pthread_mutex_unlock(&position->lock);
}

static uint64_t end_of(const char *buf, int64_t n)
{
	const struct host_dirent *entry = (const void *)buf;

	for (int64_t at = 0; at < n; at += entry->reclen)
		entry = (const void *)(buf + at);
	return entry->off;
}

static int64_t read_entries(struct core *core, uint64_t fh, int fd, uint64_t offset, void *buf, uint32_t size)
{
	struct position *position = &core->position[fh % POSITIONS];
	int64_t n = -1;

	pthread_mutex_lock(&position->lock);
	/* ext4 forgets what it has sorted at any seek, also to where it is (fs/ext4/dir.c, ext4_dir_llseek). */
	if ((position->fh == fh && position->offset == offset) || lseek(fd, (off_t)offset, SEEK_SET) >= 0)
		n = syscall(SYS_getdents64, fd, buf, size);
	if (n < 0)
		n = -errno;
	position->fh = n > 0 ? fh : 0;
	if (n > 0)
		position->offset = end_of(buf, n);
	pthread_mutex_unlock(&position->lock);
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

/* A request that is served. */
struct listing {
	uint64_t fh;
	int fd;
	const struct directory *dir; /* NULL: without entries */
	bool misled;                 /* inode numbers that it tells lead to others */
	uint64_t offset;             /* behind what is in the reply */
	struct reply reply;
};

/* What is not about by the number that the directory tells is one that nobody knows. On an overlay it may have another. */
static int list_entry(struct core *core, struct listing *listing, const struct host_dirent *entry,
		      struct fuse_entry_out *out)
{
	const struct directory *dir = listing->dir;
	int error;

	if (listing->misled || inode_is_about(core, dir->key.dev, entry->ino))
		return entry_at(core, dir, entry->name, false, out);
	error = entry_opened(core, dir, entry->name, out);
	listing->misled = error == ENTRY_KNOWN;
	return error;
}

/* nodeid 0 says "no entry here, look it up" (fs/fuse/readdir.c, fuse_direntplus_link): for the dots, and for what went,
 * or cannot be reached, since it was read. */
static bool emit_plus(struct core *core, struct listing *listing, const struct host_dirent *entry)
{
	struct reply *reply = &listing->reply;
	uint32_t len = strlen(entry->name);
	struct fuse_direntplus *plus =
		(void *)reserve(reply, offsetof(struct fuse_direntplus, dirent), len);

	if (!plus)
		return false;
	fill_dirent(&plus->dirent, entry, len);
	if (is_dots(entry->name))
		return true;
	if (list_entry(core, listing, entry, &plus->entry_out) >= 0)
		plus->dirent.type = (plus->entry_out.attr.mode & S_IFMT) >> 12;
	return true;
}

/* How much of the host may be read so that all of it fits: the shortest record, of 24 bytes, grows the most. What does not
 * fit would be read again, after a seek. */
static uint32_t host_size(const struct listing *listing)
{
	uint64_t room = (listing->reply.size - listing->reply.used) * 24ULL / (listing->dir ? 160 : 32);

	return room < DIRENTS_MAX ? room : DIRENTS_MAX;
}

/* How much was read, and put into the reply as far as it fits; or -errno. */
static int64_t list_some(struct core *core, struct listing *listing, uint32_t size)
{
	char *buf = (char *)scratch_get()->dirents;
	int64_t n = read_entries(core, listing->fh, listing->fd, listing->offset, buf, size), at;

	for (at = 0; at < n;) {
		const struct host_dirent *entry = (const void *)(buf + at);

		if (!(listing->dir ? emit_plus(core, listing, entry) : emit(&listing->reply, entry)))
			break;
		listing->offset = (uint64_t)entry->off;
		at += entry->reclen;
	}
	return n;
}

/* Until the reply is nearly full, or the directory seems to be at its end. */
static int64_t list(struct core *core, struct listing *listing)
{
	const struct reply *reply = &listing->reply;
	uint32_t size = host_size(listing), used = 0;
	int64_t n = list_some(core, listing, size);

	/* A name that is too long for that may fit all the same. */
	if (n == -EINVAL)
		n = list_some(core, listing, DIRENTS_MIN);
	if (n < 0)
		return n;
	/* An empty reply is the end of the directory; an entry that fits nowhere is not. */
	if (reply->used == 0)
		return n > 0 ? -EINVAL : 0;
	while (reply->used > used && n + DIRENT_LONG > size && reply->size - reply->used > reply->size / 8) {
		used = reply->used;
		size = host_size(listing);
		n = list_some(core, listing, size);
	}
	return reply->used;
}

static int64_t read_directory(struct core *core, struct fuse_request *request, struct directory *dir)
{
	const struct fuse_read_in *in = (const void *)request->arg;
	uint32_t size = in->size < request->reply_max ? in->size : request->reply_max;
	struct listing listing = {
		.fh = in->fh, .fd = handle_get(core, in->fh), .dir = dir, .offset = in->offset,
		.reply = {.at = request->reply, .size = size},
	};
	int64_t result;

	if (listing.fd < 0)
		return listing.fd;
	if (dir)
		dir->fd = listing.fd;
	result = list(core, &listing);
	handle_put(core, in->fh);
	return result;
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
