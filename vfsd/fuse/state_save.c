/* What a migration takes along of the tables, read while no request is served.
 *
 * Rule 1. An inode comes after the one it is found through, so that whoever loads it can open one after the other.
 * Rule 2. A record is found, or it says why not: what to make of that is decided where it is loaded.
 *         By path that is where the kernel says it is, else where a directory of the table has a name of it.
 * Rule 3. What nobody misses is left out: an inode that has no name any more, and that the guest has not open, is about to
 *         be forgotten; and one that is lost already is no more lost where the guest goes.
 */
#include "inode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ON_STACK 1
#define DONE 2

struct state_walk {
	struct core *core;
	uint32_t flags;
	uint32_t high;
	uint32_t next;   /* slot to go on with when the stack is empty */
	uint32_t depth;
	uint32_t *stack; /* slots, each found through the next */
	uint8_t *marks;  /* by slot */
	struct state_names *names; /* NULL until one is needed */
};

/* One record in the making. */
struct saved {
	bool left_out;
	struct state_inode inode;
	char bytes[STATE_BYTES_MAX + 1];
};

struct state_walk *state_walk_new(struct core *core, uint32_t flags)
{
	struct state_walk *walk = calloc(1, sizeof(*walk));

	if (!walk)
		return NULL;
	walk->core = core;
	walk->flags = flags;
	walk->high = core->inodes.high;
	walk->next = INODE_FIRST;
	/* Pages nobody touches cost nothing. */
	walk->stack = calloc(walk->high, sizeof(*walk->stack));
	walk->marks = calloc(walk->high, 1);
	if (!walk->stack || !walk->marks) {
		state_walk_free(walk);
		return NULL;
	}
	return walk;
}

void state_walk_free(struct state_walk *walk)
{
	state_names_free(walk->names);
	free(walk->stack);
	free(walk->marks);
	free(walk);
}

/* The path of an open inode from the root of the share, as the kernel knows it; "" outside of the share. */
static void path_below(const struct core *core, int fd, char path[STATE_BYTES_MAX + 1])
{
	char root[STATE_BYTES_MAX + 1];
	ssize_t skip = path_of(core, core->config.root_fd, root, sizeof(root));
	ssize_t n = path_of(core, fd, path, STATE_BYTES_MAX + 1);

	/* The root of all ends with the slash that another path goes on with. */
	if (skip > 0 && root[skip - 1] == '/')
		skip--;
	if (skip < 0 || n <= skip || strncmp(path, root, skip) != 0 || path[skip] != '/')
		path[0] = 0;
	else
		memmove(path, path + skip + 1, n - skip);
}

static bool leads(const struct core *core, const char *path, const struct inode_key *key)
{
	int fd = open_beneath(core->config.root_fd, path);
	struct inode_key found;
	struct statx stat;
	bool same = false;

	if (fd < 0)
		return false;
	if (stat_fd(fd, &stat) == 0) {
		key_of(&stat, &found);
		same = same_key(&found, key);
	}
	close(fd);
	return same;
}

static void fill(struct saved *saved, const struct locator *from)
{
	saved->inode.how = from->how == BY_HANDLE ? STATE_HANDLE : STATE_PATH;
	saved->inode.base = from->base;
	saved->inode.handle_type = from->handle_type;
	saved->inode.len = from->len;
	memcpy(saved->bytes, from->bytes, from->len);
}

static void lose(struct saved *saved, int error)
{
	saved->inode.how = STATE_LOST;
	saved->inode.base = 0;
	saved->inode.error = -error;
	saved->inode.len = strlen(saved->bytes);
}

/* Whether a directory of the table has a name of an inode, by which it is saved then. */
static bool save_name(struct state_walk *walk, uint32_t slot, const struct inode_key *key, struct saved *saved)
{
	struct core *core = walk->core;
	const char *name;
	uint32_t dir;
	bool found;
	int fd;

	/* The kernel knows the path of any directory. */
	if (key->type == S_IFDIR)
		return false;
	if (!walk->names)
		walk->names = state_names_read(core);
	name = walk->names ? state_names_of(walk->names, slot, &dir) : NULL;
	if (!name)
		return false;
	core->inodes.private[dir].pins++;
	fd = inode_restore(core, dir);
	found = fd >= 0 && name_leads(fd, name, key);
	inode_unpin_unlocked(core, dir);
	if (!found)
		return false;
	saved->inode.how = STATE_PATH;
	saved->inode.base = slots_id(&core->inodes, dir);
	saved->inode.len = strlen(name);
	memcpy(saved->bytes, name, saved->inode.len);
	return true;
}

static bool is_open(struct core *core, uint64_t nodeid)
{
	uint64_t fh;

	if (handle_of_inode(core, nodeid, &fh) < 0)
		return false;
	handle_put(core, fh);
	return true;
}

/* Where a pinned inode, open as `fd`, is found. */
static void save_open(struct state_walk *walk, uint32_t slot, int fd, struct saved *saved)
{
	struct core *core = walk->core;
	bool by_handle = walk->flags & STATE_HANDLES;
	int how = by_handle ? BY_HANDLE | BY_NAME : BY_NAME;
	struct inode_handle handle = {0};
	struct inode_key key = {0};
	struct locator locator;
	struct statx stat = {0};
	uint32_t base;
	int error = stat_fd(fd, &stat);

	if (error == 0) {
		key_of(&stat, &key);
		if (by_handle || (walk->flags & STATE_TAGS))
			file_handle_of(fd, "", &handle);
		saved->inode.tag = handle.tag;
		/* Nothing leads to what has no link, but for a handle. */
		error = stat.stx_nlink || by_handle ? 0 : -ENOENT;
	}
	if (error == 0)
		error = locate_near(core, inode_record(core, slot)->base, fd, &key, &handle, how, &locator, &base);
	if (error == 0) {
		inode_unpin_unlocked(core, base);
		fill(saved, &locator);
		return;
	}
	path_below(core, fd, saved->bytes);
	if (saved->bytes[0] && leads(core, saved->bytes, &key)) {
		saved->inode.how = STATE_PATH;
		saved->inode.base = FUSE_ROOT_ID;
		saved->inode.len = strlen(saved->bytes);
	} else if (!stat.stx_nlink || !save_name(walk, slot, &key, saved)) {
		lose(saved, error);
		saved->left_out = stat.stx_nlink == 0 && !is_open(core, saved->inode.nodeid);
	}
}

/* Whether what a closed inode's record says of it may be passed on as it is. */
static bool passes(const struct state_walk *walk, const struct inode_record *record)
{
	bool by_handle = walk->flags & STATE_HANDLES;

	return !(walk->flags & STATE_CONFIRM) && (record->how == BY_NAME) != by_handle;
}

static void save_inode(struct state_walk *walk, uint32_t slot, struct saved *saved)
{
	struct core *core = walk->core;
	struct inode_record *record = inode_record(core, slot);
	struct locator locator;
	int fd;

	saved->inode = (struct state_inode){
		.nodeid = slots_id(&core->inodes, slot), .nlookup = record->nlookup, .type = record->type,
	};
	saved->bytes[0] = 0;
	saved->left_out = false;
	if (is_closed(core, slot) && passes(walk, record)) {
		locator_read(core, slot, &locator);
		saved->inode.tag = walk->flags & STATE_TAGS ? record->tag : 0;
		fill(saved, &locator);
		return;
	}
	core->inodes.private[slot].pins++;
	fd = inode_restore(core, slot);
	if (fd >= 0) {
		save_open(walk, slot, fd, saved);
	} else {
		/* One that is lost (rule 3), or could not be opened now. It would have been found by an open file. */
		lose(saved, fd);
		saved->left_out = fd == -ESTALE;
	}
	inode_unpin_unlocked(core, slot);
}

/* The slot that has to be saved before one that is found through `base`; 0: none. A host that renames directories
 * meanwhile can make a circle: then none is saved before, and it is not found. */
static uint32_t before(const struct state_walk *walk, uint64_t base)
{
	uint32_t slot = (uint32_t)base;

	return slot >= INODE_FIRST && slot < walk->high && !walk->marks[slot] ? slot : 0;
}

static void push(struct state_walk *walk, uint32_t slot)
{
	walk->marks[slot] = ON_STACK;
	walk->stack[walk->depth++] = slot;
}

/* The next inode to be saved, found through what was saved; false when all are. */
static bool next(struct state_walk *walk, struct saved *saved)
{
	struct core *core = walk->core;

	for (; !walk->depth; walk->next++) {
		const struct inode_record *record;

		if (walk->next >= walk->high)
			return false;
		record = inode_record(core, walk->next);
		if (record->slot.valid == 1 && !is_tail(record) && record->nlookup && !walk->marks[walk->next])
			push(walk, walk->next);
	}
	for (;;) {
		uint32_t base;

		save_inode(walk, walk->stack[walk->depth - 1], saved);
		base = before(walk, saved->inode.base);
		if (!base)
			return true;
		push(walk, base);
	}
}

_Static_assert(sizeof(struct state_inode) + STATE_BYTES_MAX + 8 <= STATE_ROOM, "room for any record");

void state_save(struct state_walk *walk, uint8_t *to, uint64_t size, struct state_progress *progress)
{
	struct saved saved;
	uint64_t len;

	*progress = (struct state_progress){0};
	while (size - progress->bytes >= STATE_ROOM && progress->error == 0 && next(walk, &saved)) {
		walk->marks[walk->stack[--walk->depth]] = DONE;
		if (saved.left_out)
			continue;
		len = state_padded(saved.inode.len);
		memset(saved.bytes + saved.inode.len, 0, len - saved.inode.len);
		progress->last = progress->bytes;
		memcpy(to + progress->bytes, &saved.inode, sizeof(saved.inode));
		memcpy(to + progress->bytes + sizeof(saved.inode), saved.bytes, len);
		progress->bytes += sizeof(saved.inode) + len;
		progress->error = -(int)saved.inode.error;
	}
}

uint32_t state_next_handle(struct core *core, uint32_t slot, struct state_handle *handle, int32_t *fd)
{
	for (; slot && slot < core->handles.high; slot++) {
		int flags;

		if (slots_at(&core->handles, slot)->valid != 1)
			continue;
		*handle = (struct state_handle){.fh = slots_id(&core->handles, slot), .flock = F_UNLCK};
		*fd = handle_record_of(core, slot, &handle->nodeid);
		flags = fcntl(*fd, F_GETFL);
		handle->flags = flags < 0 ? 0 : flags;
		return slot;
	}
	return 0;
}

void state_numbers(struct core *core, struct state_numbers *numbers)
{
	*numbers = (struct state_numbers){
		.inode_high = core->inodes.high, .inode_generation = core->inodes.generation,
		.handle_high = core->handles.high, .handle_generation = core->handles.generation,
	};
}
