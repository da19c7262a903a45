/* LOOKUP, FORGET, BATCH_FORGET, GETATTR, and what every op that answers with an entry is built on. */
#include "ops.h"

#include <errno.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000

/* A directory on another mount than its parent, if the guest is to know (fs/fuse/dir.c, fuse_dentry_automount). */
static bool is_submount(const struct core *core, const struct inode_key *dir, const struct inode_key *key)
{
	return (core->config.flags & CORE_ANNOUNCE_SUBMOUNTS) && negotiated(core, FUSE_SUBMOUNTS) &&
	       key->type == S_IFDIR && (key->mnt_id != dir->mnt_id || key->dev != dir->dev);
}

/* How long the guest may keep attributes. A write takes set-id bits away, or another modification that carries no flag,
 * and the guest does not ask for the mode again (fs/fuse/file.c, fuse_write_update_attr): it must not keep them. */
static uint64_t attr_ns(const struct core *core, const struct statx *stat)
{
	if (S_ISREG(stat->stx_mode) && stat->stx_mode & (S_ISUID | S_ISGID))
		return 0;
	return core->config.attr_ns;
}

static void fill_entry(struct core *core, uint64_t nodeid, const struct directory *dir,
		       const struct statx *stat, struct fuse_entry_out *out)
{
	struct inode_key key;

	*out = (struct fuse_entry_out){
		.nodeid = nodeid, /* never used twice, so its FUSE generation can stay 0 */
		.entry_valid = core->config.entry_ns / NSEC_PER_SEC,
		.entry_valid_nsec = core->config.entry_ns % NSEC_PER_SEC,
		.attr_valid = attr_ns(core, stat) / NSEC_PER_SEC,
		.attr_valid_nsec = attr_ns(core, stat) % NSEC_PER_SEC,
	};
	fill_attr(core, stat, &out->attr);
	key_of(stat, &key);
	if (dir && is_submount(core, &dir->key, &key))
		out->attr.flags |= FUSE_ATTR_SUBMOUNT;
	out->attr.flags |= dax_attr(core, nodeid, stat);
}

/* The entry of what a descriptor, which is given away with the call, stands for. */
static int entry_add(struct core *core, const struct directory *dir, int fd, const struct statx *stat,
		     struct fuse_entry_out *out)
{
	struct inode_key key;
	uint64_t nodeid;
	int error;

	key_of(stat, &key);
	error = inode_add(core, &key, fd, dir ? dir->nodeid : 0, &nodeid);
	if (error >= 0)
		fill_entry(core, nodeid, dir, stat, out);
	return error;
}

/* The host may have renamed since the name was looked at: what is answered is what the descriptor stands for. */
int entry_new(struct core *core, const struct directory *dir, int fd, struct fuse_entry_out *out)
{
	struct statx stat;
	int error = stat_fd(fd, &stat);

	if (error < 0) {
		close(fd);
		return error;
	}
	return entry_add(core, dir, fd, &stat, out);
}

int entry_made(struct core *core, const struct directory *dir, const char *name, struct fuse_entry_out *out)
{
	int fd = open_surely(core, dir->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);

	return fd < 0 ? fd : entry_new(core, dir, fd, out);
}

int entry_opened(struct core *core, const struct directory *dir, const char *name, struct fuse_entry_out *out)
{
	int error = make_room(core, 1);

	return error < 0 ? error : entry_made(core, dir, name, out);
}

int entry_at(struct core *core, const struct directory *dir, const char *name, bool reserved,
	     struct fuse_entry_out *out)
{
	struct found found = {.fd = dir->fd, .name = name, .dir = dir->nodeid};
	struct inode_key key;
	struct statx stat;
	uint64_t nodeid;
	int error;

	error = stat_name(dir->fd, name, &stat);
	if (error < 0)
		return error;
	key_of(&stat, &key);
	nodeid = inode_find(core, &key, &found);
	if (nodeid) {
		fill_entry(core, nodeid, dir, &stat, out);
		return ENTRY_KNOWN;
	}
	return reserved ? entry_made(core, dir, name, out) : entry_opened(core, dir, name, out);
}

int entry_from_fd(struct core *core, int fd, struct fuse_entry_out *out)
{
	struct found found = {.fd = fd, .name = ""};
	struct inode_key key;
	struct statx stat;
	uint64_t nodeid;
	int path_fd, error;

	error = stat_fd(fd, &stat);
	if (error < 0)
		return error;
	key_of(&stat, &key);
	nodeid = inode_find(core, &key, &found);
	if (nodeid) {
		fill_entry(core, nodeid, NULL, &stat, out);
		return ENTRY_KNOWN;
	}
	/* No name is looked up: it is what was looked at. */
	path_fd = reopen_surely(core, fd, O_PATH);
	return path_fd < 0 ? path_fd : entry_add(core, NULL, path_fd, &stat, out);
}

int64_t op_lookup(struct core *core, struct fuse_request *request)
{
	struct fuse_entry_out *out = (struct fuse_entry_out *)request->reply;
	const char *name = (const char *)request->arg;
	int error = is_dots(name) ? entry_dots(core, request->header.nodeid, name, out)
				  : entry_at(core, request->dir, name, false, out);

	if (error == -ENOENT && core->config.negative_ns) {
		/* Node 0: there is none, and so it stays for a while (fs/fuse/dir.c, fuse_lookup_name). */
		*out = (struct fuse_entry_out){
			.entry_valid = core->config.negative_ns / NSEC_PER_SEC,
			.entry_valid_nsec = core->config.negative_ns % NSEC_PER_SEC,
		};
		error = 0;
	}
	return error < 0 ? error : (int64_t)sizeof(*out);
}

int64_t op_forget(struct core *core, struct fuse_request *request)
{
	const struct fuse_forget_in *in = (const void *)request->arg;

	if (!request->memo || !request->memo->steps)
		nlookup_forget(core, request->header.nodeid, in->nlookup, request->memo, 1);
	return 0;
}

int64_t op_batch_forget(struct core *core, struct fuse_request *request)
{
	const struct fuse_batch_forget_in *in = (const void *)request->arg;
	const struct fuse_forget_one *one = (const void *)(in + 1);
	uint32_t room = (request->arg_len - sizeof(*in)) / sizeof(*one);
	uint32_t i;

	for (i = request->memo ? request->memo->steps : 0; i < in->count && i < room; i++)
		nlookup_forget(core, one[i].nodeid, one[i].nlookup, request->memo, i + 1);
	return 0;
}

int attr_by_fd(struct core *core, uint64_t nodeid, int fd, struct fuse_attr_out *out)
{
	struct statx stat;
	int error = stat_fd(fd, &stat);

	if (error < 0)
		return error;
	*out = (struct fuse_attr_out){
		.attr_valid = attr_ns(core, &stat) / NSEC_PER_SEC,
		.attr_valid_nsec = attr_ns(core, &stat) % NSEC_PER_SEC,
	};
	fill_attr(core, &stat, &out->attr);
	out->attr.flags |= dax_attr(core, nodeid, &stat);
	return 0;
}

int attr_by_handle(struct core *core, uint64_t nodeid, uint64_t fh, struct fuse_attr_out *out)
{
	int fd = handle_get(core, fh), error;

	if (fd < 0)
		return fd;
	error = attr_by_fd(core, nodeid, fd, out);
	handle_put(core, fh);
	return error;
}

int64_t op_getattr(struct core *core, struct fuse_request *request)
{
	const struct fuse_getattr_in *in = (const void *)request->arg;
	struct fuse_attr_out *out = (void *)request->reply;
	uint64_t nodeid = request->header.nodeid;
	int fd, error;

	if (in->getattr_flags & FUSE_GETATTR_FH) {
		error = attr_by_handle(core, nodeid, in->fh, out);
	} else {
		fd = inode_get(core, nodeid, NULL);
		if (fd < 0)
			return fd;
		error = attr_by_fd(core, nodeid, fd, out);
		inode_put(core, nodeid);
	}
	return error < 0 ? error : (int64_t)sizeof(*out);
}
