/* Exactly once: a request that was in flight in a worker that died is served again, and its guest must not be able to
 * tell. Each op has its row here that says how; the rest of this file does what the rows say.
 *
 * Rule 1. The order is: what is to be known is written to the memo (memo.h), the system call is made, the outcome is
 *         written, the used element is. Dead before the first, the request is a new one; dead after the third, it is
 *         answered from the memo, with the very reply it had.
 * Rule 2. In between the host is asked. It knows no requests: a name that was not there before and is now was made by
 *         this one, one that led to an inode and does not any more was taken by it. So another process of the host, or
 *         another guest, that does the same to the same name, between the look before and the look after, is taken for
 *         us. That is as far as a host can tell. The guest itself sends no two such requests at a time: its kernel
 *         holds the directory's lock, and the file's for what appends or changes a size.
 * Rule 3. What a reply gives (a count of nlookup, a handle) is on record before the reply is, and is taken back before
 *         the request is served once more.
 * Rule 4. A request of whom nothing is kept costs one look at this table.
 */
#include "internal.h"

#include <errno.h>
#include <string.h>

enum look {
	NOTHING, /* the host is not asked here */
	MADE,    /* it is done when there is what was not there before */
	GONE,    /* when the name does not lead any more where it led before */
	MOVED,   /* when what the first name led to is at the second, and the first leads elsewhere: in all flags */
};

struct once {
	uint8_t how;  /* ONCE_* */
	uint8_t look; /* enum look, at the names of the request */
};

#define ROW(opcode, ...) [FUSE_##opcode] = {__VA_ARGS__}

/* Ops without a row are served again (ONCE_AGAIN), and why that is the same as once stands with them. */
static const struct once rows[] = {
	/* An inode and its nlookup: taken back. */
	ROW(LOOKUP,          ONCE_UNDO),
	ROW(READDIRPLUS,     ONCE_UNDO),
	/* How many of the counts are taken is on record, together with each count (nlookup.c). */
	ROW(FORGET,          ONCE_COUNT),
	ROW(BATCH_FORGET,    ONCE_COUNT),
	/* A new name: it was there before, or it was not. */
	ROW(MKNOD,           ONCE_KEEP, MADE),
	ROW(MKDIR,           ONCE_KEEP, MADE),
	ROW(SYMLINK,         ONCE_KEEP, MADE),
	ROW(LINK,            ONCE_KEEP, MADE),
	/* The same, and the file is opened if it is ours already, whatever its mode and O_EXCL say. */
	ROW(CREATE,          ONCE_KEEP, MADE),
	/* Without a name: the file ends with its descriptor, which is swept, or with its handle, which is taken back. */
	ROW(TMPFILE,         ONCE_KEEP),
	ROW(UNLINK,          ONCE_KEEP, GONE),
	ROW(RMDIR,           ONCE_KEEP, GONE),
	/* Hard links of one inode change places without a trace, and may do so twice. */
	ROW(RENAME,          ONCE_KEEP, MOVED),
	ROW(RENAME2,         ONCE_KEEP, MOVED),
	/* A handle: taken back. To truncate twice is to truncate once, unless it is written to in between. */
	ROW(OPEN,            ONCE_KEEP),
	ROW(OPENDIR,         ONCE_UNDO),
	/* Each piece sets a value. What it does to set-id bits is on record (priv.c). */
	ROW(SETATTR,         ONCE_KEEP),
	/* XATTR_CREATE: whether the attribute was there is on record. The others set a value. */
	ROW(SETXATTR,        ONCE_KEEP),
	/* Whether it was there is on record. */
	ROW(REMOVEXATTR,     ONCE_KEEP),
	/* How much of the source there was is on record: it may grow by the copy itself. */
	ROW(COPY_FILE_RANGE, ONCE_KEEP),
	[OP_COPY_FILE_RANGE_64] = {ONCE_KEEP},
	/* Ranges are given room or zeros (what inserts or collapses is refused), bits as above. */
	ROW(FALLOCATE,       ONCE_KEEP),
	/* The host tells each open file of an error once (errseq). Dead between system call and outcome it is lost. */
	ROW(FSYNC,           ONCE_KEEP),
	ROW(FSYNCDIR,        ONCE_KEEP),
	ROW(SYNCFS,          ONCE_KEEP),
	/* Locks of an owner go, which may happen twice; an error as above. */
	ROW(FLUSH,           ONCE_KEEP),
	/* WRITE: to a place, the same bytes. One that appends, or takes set-id bits, has a memo all the same (ops_io.c):
	 * where the file ended is on record, and what is there from us is not written again.
	 * RELEASE, RELEASEDIR: no such handle any more is done already. SETLK, SETLKW: an owner has what it has locked, or
	 * has freed, already. READDIR: each request brings its position. IOCTL: sets all flags to a value. INIT, DESTROY:
	 * empty the tables, whatever is in them. SETUPMAPPING, REMOVEMAPPING: the window's owner, who outlives workers, does
	 * what of it is not done. The others only look. */
};

static const struct once *once_of(uint32_t opcode)
{
	static const struct once again = {ONCE_AGAIN};

	return opcode < sizeof(rows) / sizeof(rows[0]) ? &rows[opcode] : &again;
}

int fuse_row_once(uint32_t opcode)
{
	return once_of(opcode)->how;
}

bool once_due(uint32_t opcode)
{
	return once_of(opcode)->how != ONCE_AGAIN;
}

struct memo *memo_current(void)
{
	struct scratch *scratch = scratch_get();

	return scratch ? scratch->memo : NULL;
}

_Static_assert(sizeof(((struct memo *)0)->told) == MEMO_TOLD * sizeof(uint32_t), "cffi takes numbers only");
_Static_assert(sizeof(((struct memo *)0)->reply) == MEMO_REPLY, "the same");
_Static_assert(MEMO_REPLY >= sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out), "CREATE's");

static bool is_of(const struct core *core, const struct memo *memo, const struct fuse_in_header *header)
{
	return memo->unique == header->unique && memo->opcode == header->opcode &&
	       memo->mount == core->config.session->mounts && memo->unique;
}

struct memo *once_memo(struct core *core, struct fuse_request *request)
{
	struct memo *memo = request->chain->memo;

	if (!memo || request->memo)
		return request->memo;
	if (!request->chain->replay || !is_of(core, memo, &request->header)) {
		memo->unique = 0;
		ordered();
		memo->opcode = request->header.opcode;
		memo->mount = core->config.session->mounts;
		memo->done = memo->steps = memo->has_fact = memo->looked = memo->priv[0] = memo->priv[1] = 0;
		memo->fh = 0;
		ordered();
		memo->unique = request->header.unique;
		ordered();
	}
	request->memo = memo;
	return memo;
}

void once_fact(struct memo *memo, int64_t fact)
{
	memo->fact = fact;
	ordered();
	memo->has_fact = 1;
	ordered();
}

static void name_of(int dir_fd, const char *name, struct memo_name *to)
{
	struct inode_key key = {0};
	struct statx stat;

	/* Whatever is in the way of a look is in the way of the op, too. */
	if (stat_name(dir_fd, name, &stat) == 0)
		key_of(&stat, &key);
	*to = (struct memo_name){.dev = key.dev, .ino = key.ino, .mnt_id = key.mnt_id, .btime = key.btime, .type = key.type};
}

static bool same_place_as(const struct memo_name *a, const struct memo_name *b)
{
	return a->ino == b->ino && a->dev == b->dev && a->mnt_id == b->mnt_id && a->type == b->type;
}

static bool same_name(const struct memo_name *a, const struct memo_name *b)
{
	return same_place_as(a, b) && a->btime == b->btime;
}

/* What the second name of a RENAME or RENAME2 leads to. 0 or -errno: its directory is not known. */
static int new_name_of(struct core *core, const struct fuse_request *request, const char *name, struct memo_name *to)
{
	uint64_t newdir = ((const struct fuse_rename_in *)request->arg)->newdir;
	int dir_fd = inode_get(core, newdir, NULL);

	if (dir_fd < 0)
		return dir_fd;
	name_of(dir_fd, name + strlen(name) + 1, to);
	inode_put(core, newdir);
	return 0;
}

/* Whether what is there now may be what the request makes. */
static bool is_wanted(struct core *core, const struct fuse_request *request, const struct memo_name *now)
{
	struct inode_key old;
	uint32_t type;

	switch (request->header.opcode) {
	case FUSE_MKDIR:
		return now->type == S_IFDIR;
	case FUSE_SYMLINK:
		return now->type == S_IFLNK;
	case FUSE_MKNOD:
		type = ((const struct fuse_mknod_in *)request->arg)->mode & S_IFMT;
		return now->type == (type ? type : S_IFREG);
	case FUSE_LINK:
		return inode_key(core, ((const struct fuse_link_in *)request->arg)->oldnodeid, &old) == 0 &&
		       old.ino == now->ino && old.dev == now->dev;
	default:
		return now->type == S_IFREG;
	}
}

/* Whether the host has done already what was begun. 1, 0 or -errno. */
static int happened(struct core *core, const struct fuse_request *request, const char *name)
{
	enum look kind = once_of(request->header.opcode)->look;
	const struct memo_name *was = &request->memo->name;
	struct memo_name now, moved;
	int error;

	name_of(request->dir->fd, name, &now);
	if (kind == MADE)
		return !was->type && now.type && is_wanted(core, request, &now);
	if (kind == GONE)
		return was->type && !same_name(was, &now);
	error = new_name_of(core, request, name, &moved);
	/* The birth time may change on the way: a copy-up of overlayfs. */
	return error < 0 ? error : was->type && same_place_as(was, &moved) && !same_place_as(was, &now);
}

static void take_back(struct core *core, struct memo *memo)
{
	if (memo->fh) {
		handle_release(core, memo->fh);
		memo->fh = 0;
	}
	nlookup_take_back(core, memo);
}

/* What came of a request that was done: the length of its reply, which is put where it belongs, or -errno. */
static int64_t recall(const struct memo *memo, struct fuse_request *request)
{
	if (memo->result > MEMO_REPLY || memo->result > request->reply_max)
		return -EIO;
	if (memo->result > 0)
		memcpy(request->reply, memo->reply, memo->result);
	return memo->result;
}

int64_t once_refuse(struct core *core, struct fuse_request *request)
{
	struct memo *memo = request->chain->memo;

	if (!memo || !is_of(core, memo, &request->header))
		return -EIO;
	if (memo->done)
		return recall(memo, request);
	if (once_of(memo->opcode)->how != ONCE_COUNT)
		take_back(core, memo);
	return -EIO;
}

int64_t once_begin(struct core *core, struct fuse_request *request)
{
	struct memo *memo = once_memo(core, request);

	if (!memo)
		return ONCE_SERVE;
	if (request->chain->replay && memo->done)
		return recall(memo, request);
	if (request->chain->replay && once_of(request->header.opcode)->how != ONCE_COUNT)
		take_back(core, memo);
	scratch_get()->memo = memo;
	return ONCE_SERVE;
}

int once_look(struct core *core, struct fuse_request *request, const char *name)
{
	struct memo *memo = request->memo;
	int result;

	if (!memo || once_of(request->header.opcode)->look == NOTHING)
		return 0;
	if (!memo->looked) {
		name_of(request->dir->fd, name, &memo->name);
		ordered();
		memo->looked = 1;
		ordered();
		return 0;
	}
	result = happened(core, request, name);
	request->made = result > 0;
	return result < 0 ? result : 0;
}

static void keep(struct memo *memo, const uint8_t *reply, int64_t result)
{
	if (result > MEMO_REPLY)
		return;
	if (result > 0)
		memcpy(memo->reply, reply, result);
	memo->result = result;
	ordered();
	memo->done = 1;
}

void once_end(const struct fuse_request *request, int64_t result)
{
	struct memo *memo = request->memo;

	if (!memo)
		return;
	scratch_get()->memo = NULL;
	if (result != VIRTQ_DEFERRED && once_of(memo->opcode)->how == ONCE_KEEP)
		keep(memo, request->reply, result);
}

void once_finish(const struct core *core, struct virtq_chain *chain, uint64_t unique, const uint8_t *reply,
		 int64_t result)
{
	struct memo *memo = chain->memo;

	if (memo && memo->unique == unique && memo->mount == core->config.session->mounts &&
	    once_of(memo->opcode)->how == ONCE_KEEP)
		keep(memo, reply, result);
}
