/* The table of every op we support, and the one function that reads a request, checks it against its row and answers.
 *
 * Rule 1. What the guest can change is read once: header and arguments into scratch, where the checks are made and the
 *         ops look. Only a WRITE's payload stays where it is.
 * Rule 2. No row, no op: ENOSYS. A row without a function is Python's, behind the door.
 * Rule 3. An op that takes its caller's identity takes it here and gives it back here.
 * Rule 4. A reply is whole or it is an error: never cut to the guest's room.
 */
#include "barrier.h"
#include "ops.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Bytes of a name: FUSE_NAME_MAX (fs/fuse/fuse_i.h), what a guest sends at most. */
#define FUSE_NAME_LIMIT 1024

#define MODIFIES 1   /* EROFS where the share is read-only */
#define AS_CALLER 2  /* served with the caller's uid and gid */
#define NO_REPLY 4   /* the guest expects none, not even of an error */
#define PAYLOAD 8    /* what follows the fixed arguments stays in guest memory */
#define IN_PLACE 16  /* the op puts its reply where it belongs */
#define UNMOUNTED 32 /* allowed before INIT */

struct row {
	const char *name;
	uint8_t fixed;   /* least bytes of fixed arguments */
	uint8_t reply;   /* least room for the reply, its header apart */
	uint8_t names;   /* path components that follow the fixed arguments */
	uint8_t strings; /* other strings that follow those */
	uint8_t flags;
	op_function serve;
	uint8_t mode;  /* where a mode and the umask for it lie in the fixed arguments, when umask is not 0 */
	uint8_t umask;
};

#define ENTRY sizeof(struct fuse_entry_out)
#define ATTR sizeof(struct fuse_attr_out)
#define ARG(type) sizeof(struct fuse_##type##_in)
#define OUT(type) sizeof(struct fuse_##type##_out)
#define MASKED(type) offsetof(struct fuse_##type##_in, mode), offsetof(struct fuse_##type##_in, umask)
#define ROW(opcode, ...) [FUSE_##opcode] = {#opcode, __VA_ARGS__}

static const struct row rows[] = {
	/* opcode            fixed arguments       reply           names, strings, flags          function */
	ROW(LOOKUP,          0,                    ENTRY,             1, 0, 0,                    op_lookup),
	ROW(FORGET,          ARG(forget),          0,                 0, 0, NO_REPLY,             op_forget),
	ROW(GETATTR,         ARG(getattr),         ATTR,              0, 0, 0,                    op_getattr),
	ROW(SETATTR,         ARG(setattr),         ATTR,              0, 0, MODIFIES,             op_setattr),
	ROW(READLINK,        0,                    0,                 0, 0, 0,                    op_readlink),
	ROW(SYMLINK,         0,                    ENTRY,             1, 1, MODIFIES | AS_CALLER, op_symlink),
	ROW(MKNOD,           ARG(mknod),           ENTRY,             1, 0, MODIFIES | AS_CALLER, op_mknod, MASKED(mknod)),
	ROW(MKDIR,           ARG(mkdir),           ENTRY,             1, 0, MODIFIES | AS_CALLER, op_mkdir, MASKED(mkdir)),
	ROW(UNLINK,          0,                    0,                 1, 0, MODIFIES,             op_unlink),
	ROW(RMDIR,           0,                    0,                 1, 0, MODIFIES,             op_rmdir),
	ROW(RENAME,          ARG(rename),          0,                 2, 0, MODIFIES,             op_rename),
	ROW(LINK,            ARG(link),            ENTRY,             1, 0, MODIFIES,             op_link),
	ROW(OPEN,            ARG(open),            OUT(open),         0, 0, 0,                    op_open),
	ROW(READ,            ARG(read),            0,                 0, 0, IN_PLACE,             op_read),
	ROW(WRITE,           ARG(write),           OUT(write),        0, 0, MODIFIES | PAYLOAD,   op_write),
	ROW(STATFS,          0,                    OUT(statfs),       0, 0, 0,                    op_statfs),
	ROW(RELEASE,         ARG(release),         0,                 0, 0, 0,                    op_release),
	ROW(FSYNC,           ARG(fsync),           0,                 0, 0, 0,                    op_fsync),
	ROW(SETXATTR,        ARG(setxattr),        0,                 0, 1, MODIFIES,             NULL),
	ROW(GETXATTR,        ARG(getxattr),        0,                 0, 1, 0,                    NULL),
	ROW(LISTXATTR,       ARG(getxattr),        0,                 0, 0, 0,                    NULL),
	ROW(REMOVEXATTR,     0,                    0,                 0, 1, MODIFIES,             NULL),
	ROW(FLUSH,           ARG(flush),           0,                 0, 0, 0,                    op_flush),
	/* Guests before 7.36 send no more than four words. */
	ROW(INIT,            16,                   OUT(init),         0, 0, UNMOUNTED,            NULL),
	ROW(OPENDIR,         ARG(open),            OUT(open),         0, 0, 0,                    op_opendir),
	ROW(READDIR,         ARG(read),            0,                 0, 0, 0,                    op_readdir),
	ROW(RELEASEDIR,      ARG(release),         0,                 0, 0, 0,                    op_releasedir),
	ROW(FSYNCDIR,        ARG(fsync),           0,                 0, 0, 0,                    op_fsync),
	ROW(GETLK,           ARG(lk),              OUT(lk),           0, 0, 0,                    NULL),
	ROW(SETLK,           ARG(lk),              0,                 0, 0, 0,                    NULL),
	ROW(SETLKW,          ARG(lk),              0,                 0, 0, 0,                    NULL),
	ROW(ACCESS,          ARG(access),          0,                 0, 0, 0,                    NULL),
	ROW(CREATE,          ARG(create),          ENTRY + OUT(open), 1, 0, MODIFIES | AS_CALLER, op_create,
	    MASKED(create)),
	ROW(IOCTL,           ARG(ioctl),           OUT(ioctl),        0, 0, 0,                    NULL),
	ROW(DESTROY,         0,                    0,                 0, 0, UNMOUNTED,            NULL),
	ROW(BATCH_FORGET,    ARG(batch_forget),    0,                 0, 0, NO_REPLY,             op_batch_forget),
	ROW(FALLOCATE,       ARG(fallocate),       0,                 0, 0, MODIFIES,             op_fallocate),
	ROW(READDIRPLUS,     ARG(read),            0,                 0, 0, 0,                    op_readdirplus),
	ROW(RENAME2,         ARG(rename2),         0,                 2, 0, MODIFIES,             op_rename2),
	ROW(LSEEK,           ARG(lseek),           OUT(lseek),        0, 0, 0,                    op_lseek),
	ROW(COPY_FILE_RANGE, ARG(copy_file_range), OUT(write),        0, 0, MODIFIES,             op_copy_file_range),
	ROW(SETUPMAPPING,    ARG(setupmapping),    0,                 0, 0, MODIFIES,             NULL),
	ROW(REMOVEMAPPING,   ARG(removemapping),   0,                 0, 0, 0,                    NULL),
	ROW(SYNCFS,          ARG(syncfs),          0,                 0, 0, 0,                    NULL),
	/* Its name is the "/" of a dentry that has none yet (fs/fuse/dir.c, fuse_tmpfile). */
	ROW(TMPFILE,         ARG(create),          ENTRY + OUT(open), 0, 1, MODIFIES | AS_CALLER, NULL, MASKED(create)),
	/* Too new for the system's header (newer.h). */
	[OP_STATX] = {"STATX", sizeof(struct wire_statx_in), 0, 0, 0, 0, NULL},
	[OP_COPY_FILE_RANGE_64] = {"COPY_FILE_RANGE_64", ARG(copy_file_range),
				   sizeof(struct wire_copy_file_range_out), 0, 0, MODIFIES, op_copy_file_range_64},
};

_Static_assert(sizeof(rows) / sizeof(rows[0]) <= sizeof(((struct core_session *)0)->served) / sizeof(uint64_t),
	       "each opcode has a counter");

static const struct row *row_of(uint32_t opcode)
{
	if (opcode >= sizeof(rows) / sizeof(rows[0]) || !rows[opcode].name)
		return NULL;
	return &rows[opcode];
}

const char *fuse_row_name(uint32_t opcode)
{
	const struct row *row = row_of(opcode);

	return row ? row->name : NULL;
}

int fuse_row_in_c(uint32_t opcode)
{
	const struct row *row = row_of(opcode);

	return row && row->serve;
}

struct scratch *scratch_get(void)
{
	static __thread struct scratch *scratch;

	if (!scratch) {
		void *map = mmap(NULL, sizeof(*scratch), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		scratch = map == MAP_FAILED ? NULL : map;
	}
	return scratch;
}

/* Where the names begin. A guest that did not agree on the longer SETXATTR sends the old one. */
static uint32_t fixed_size(const struct core *core, const struct row *row)
{
	if (row == &rows[FUSE_SETXATTR] && !negotiated(core, FUSE_SETXATTR_EXT))
		return FUSE_COMPAT_SETXATTR_IN_SIZE;
	return row->fixed;
}

static int check_name(const char *name, size_t len, bool dots)
{
	if (len == 0 || memchr(name, '/', len))
		return -EINVAL;
	if (is_dots(name) && !dots)
		return -EINVAL;
	/* There are file systems that count characters, not bytes: the host knows its limit. */
	return len > FUSE_NAME_LIMIT ? -ENAMETOOLONG : 0;
}

/* The names and strings after the fixed arguments are there, terminated, and the names are names. */
static int check_strings(const struct core *core, const struct row *row, struct fuse_request *request,
			 uint32_t fixed)
{
	/* An inode itself, and its parent (export.c). */
	bool dots = row == &rows[FUSE_LOOKUP] && negotiated(core, FUSE_EXPORT_SUPPORT);
	const char *at = (const char *)request->arg + fixed;
	const char *end = (const char *)request->arg + request->arg_len;
	int i, error = 0;

	for (i = 0; i < row->names + row->strings && error == 0; i++) {
		size_t len = strnlen(at, end - at);

		if (at + len == end)
			return -EINVAL;
		if (i < row->names)
			error = check_name(at, len, dots);
		at += len + 1;
	}
	request->names_end = at - (const char *)request->arg;
	return error;
}

/* Reads header and arguments. The row of an op is known as soon as the header is; *row stays NULL for none. */
static int read_request(struct core *core, struct fuse_request *request, const struct row **row)
{
	const struct virtq_chain *chain = request->chain;
	struct fuse_in_header *header = &request->header;
	uint64_t head = sizeof(*header);
	uint32_t fixed;

	if (iov_gather(chain->in, chain->in_count, 0, header, head) < head) {
		*header = (struct fuse_in_header){0};
		return -EINVAL;
	}
	*row = row_of(header->opcode);
	if (!*row)
		return -ENOSYS;
	fixed = fixed_size(core, *row);
	if (header->len < head + fixed || header->len > chain->in_len)
		return -EINVAL;
	request->arg_len = (*row)->flags & PAYLOAD ? fixed : header->len - (uint32_t)head;
	if (request->arg_len > REQUEST_MAX)
		return -E2BIG;
	if (iov_gather(chain->in, chain->in_count, head, (void *)request->arg, request->arg_len) < request->arg_len)
		return -EINVAL;
	return check_strings(core, *row, request, fixed);
}

static int check_allowed(struct core *core, const struct row *row, const struct fuse_request *request)
{
	if (!core->config.session->mounted && !(row->flags & UNMOUNTED))
		return -EIO;
	if ((row->flags & MODIFIES) && (core->config.flags & CORE_READONLY))
		return -EROFS;
	return request->reply_max < row->reply ? -EINVAL : 0;
}

static int find_room(struct core *core, const struct row *row)
{
	int result = 0;

	/* What makes an inode, or opens it too, and then has no descriptor for it would fail, and have happened. */
	if ((row->flags & MODIFIES) && row->reply > ENTRY)
		result = make_room_for_handle(core);
	if (result == 0 && (row->flags & MODIFIES) && row->reply >= ENTRY)
		result = make_room(core, row->reply > ENTRY ? 2 : 1);
	return result;
}

static int64_t serve(struct core *core, const struct row *row, struct fuse_request *request, const char *name)
{
	struct fuse_entry_out *entry = (void *)request->reply;
	int error;

	/* It is done, and only not answered (once.c). A file has to be opened, too. */
	if (!request->made || row->serve == op_create)
		return row->serve ? row->serve(core, request) : core->config.door(core, request);
	if (row->reply < ENTRY)
		return 0;
	error = entry_at(core, request->dir, name, true, entry);
	return error < 0 ? error : (int64_t)sizeof(*entry);
}

static int64_t serve_as_caller(struct core *core, const struct row *row, struct fuse_request *request, const char *name)
{
	struct label label;
	struct cred cred;
	int64_t result;

	result = label_read(core, request, &label);
	if (result < 0)
		return result;
	if (row->umask)
		umask_apply(core, request, row->mode, row->umask);
	result = cred_enter(core, request, &cred);
	if (result < 0)
		return result;
	result = serve(core, row, request, name);
	cred_leave(&cred);
	return label_new(core, request, &label, name, result);
}

/* In the directory of its names, which is pinned before a caller's identity is taken: if it has to be opened again, that
 * is ours to do. */
static int64_t serve_in_directory(struct core *core, const struct row *row, struct fuse_request *request)
{
	const char *name = row->names ? (const char *)request->arg + row->fixed : NULL;
	struct directory dir = {.nodeid = request->header.nodeid};
	int64_t result;

	dir.fd = inode_get_key(core, dir.nodeid, &dir.key);
	if (dir.fd < 0)
		return dir.fd;
	request->dir = &dir;
	result = name ? once_look(core, request, name) : 0;
	if (result == 0 && !request->made)
		result = find_room(core, row);
	if (result == 0)
		result = row->flags & AS_CALLER ? serve_as_caller(core, row, request, name)
						: serve(core, row, request, name);
	inode_put(core, dir.nodeid);
	return result;
}

static int64_t run(struct core *core, const struct row *row, struct fuse_request *request)
{
	if (row->names || row->flags & AS_CALLER)
		return serve_in_directory(core, row, request);
	return serve(core, row, request, NULL);
}

/* The same for an op of which something is kept. */
static int64_t run_once(struct core *core, const struct row *row, struct fuse_request *request)
{
	int64_t result = once_begin(core, request);

	if (result == ONCE_SERVE)
		result = run(core, row, request);
	once_end(request, result);
	return result;
}

/* Writes the header, and the reply unless it is in place (NULL). Returns the bytes used of the chain. */
static uint32_t answer(const struct virtq_chain *chain, uint64_t unique, const uint8_t *reply, int64_t result)
{
	struct fuse_out_header header = {.len = sizeof(header), .unique = unique};
	uint64_t room;

	if (chain->out_len < sizeof(header))
		return 0;
	room = chain->out_len - sizeof(header);
	/* Our table of descriptors is full, which is not the caller's, of which EMFILE would speak. */
	if (result == -EMFILE)
		result = -ENFILE;
	/* Beyond these lie the kernel's private codes (fs/fuse/dev.c, fuse_dev_do_write). */
	if (result <= -512 || (result > 0 && (uint64_t)result > room) || result > INT32_MAX)
		result = -EIO;
	if (result < 0)
		header.error = (int32_t)result;
	else
		header.len += (uint32_t)result;
	iov_scatter(chain->out, chain->out_count, 0, &header, sizeof(header));
	if (reply && result > 0)
		iov_scatter(chain->out, chain->out_count, sizeof(header), reply, result);
	return header.len;
}

static uint32_t reply_max(const struct virtq_chain *chain)
{
	uint64_t room;

	if (chain->out_len < sizeof(struct fuse_out_header))
		return 0;
	room = chain->out_len - sizeof(struct fuse_out_header);
	return room < REPLY_MAX ? (uint32_t)room : REPLY_MAX;
}

static int64_t serve_chain(struct core *core, struct virtq_chain *chain, bool waits)
{
	struct scratch *scratch = scratch_get();
	struct fuse_request request = {.chain = chain, .reply_max = reply_max(chain), .waits = waits};
	const struct row *row = NULL;
	int64_t result;
	bool in_place;

	/* The next worker may have the memory that this one lacks, and serves it again. */
	if (!scratch)
		abort();
	request.arg = (const uint8_t *)scratch->request;
	request.reply = (uint8_t *)scratch->reply;
	result = read_request(core, &request, &row);
	if (chain->fault)
		result = -EFAULT;
	if (!row)
		return answer(chain, request.header.unique, NULL, result);
	if (!(row->flags & NO_REPLY) && chain->out_len < sizeof(struct fuse_out_header))
		return 0;
	if (result == 0)
		result = check_allowed(core, row, &request);
	if (!waits)
		fetch_add(&core->config.session->served[request.header.opcode], 1);
	if (!row->serve)
		may_last(core, &request);
	if (result == 0)
		result = once_due(request.header.opcode) ? run_once(core, row, &request) : run(core, row, &request);
	if (result == VIRTQ_DEFERRED)
		return result;
	if (row->flags & NO_REPLY)
		return 0;
	in_place = row->flags & IN_PLACE;
	if (!in_place && result > request.reply_max)
		result = -EIO;
	return answer(chain, request.header.unique, in_place ? NULL : request.reply, result);
}

int64_t fuse_serve(void *opaque, struct virtq_chain *chain)
{
	return serve_chain(opaque, chain, false);
}

void serve_waiting(struct core *core, struct virtq_chain *chain)
{
	int64_t len = serve_chain(core, chain, true);

	if (len != VIRTQ_DEFERRED)
		core->config.complete(chain, len);
}

void fuse_finish(struct core *core, struct virtq_chain *chain, uint64_t unique, const uint8_t *reply, int64_t result)
{
	once_finish(core, chain, unique, reply, result);
	core->config.complete(chain, answer(chain, unique, reply, result));
}
