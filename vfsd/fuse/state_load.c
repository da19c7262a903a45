/* What a migration brought, taken into empty tables before the first request is served.
 *
 * Rule 1. Nothing here is believed: a record that can't be meant is -EBADMSG, whatever it says of the host is looked at.
 * Rule 2. An inode is opened when it is loaded, through one that is there already. What opens is of the type that the
 *         guest knows, and no other nodeid's.
 */
#include "inode.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int state_set_numbers(struct core *core, const struct state_numbers *numbers)
{
	if (!slots_reserve(&core->inodes, numbers->inode_high, numbers->inode_generation) ||
	    !slots_reserve(&core->handles, numbers->handle_high, numbers->handle_generation))
		return -EBADMSG;
	return 0;
}

/* A record and its bytes, copied: NUL-terminated. */
struct loaded {
	struct state_inode inode;
	char bytes[STATE_BYTES_MAX + 1];
};

/* The next record of a batch; false when it is cut off, or makes no sense by itself. */
static bool read_record(const uint8_t *from, uint64_t size, struct loaded *to)
{
	const struct state_inode *inode = &to->inode;

	if (size < sizeof(to->inode))
		return false;
	memcpy(&to->inode, from, sizeof(to->inode));
	if (inode->len > STATE_BYTES_MAX || size - sizeof(*inode) < state_padded(inode->len))
		return false;
	memcpy(to->bytes, from + sizeof(*inode), inode->len);
	to->bytes[inode->len] = 0;
	switch (inode->type) {
	case S_IFREG: case S_IFDIR: case S_IFLNK: case S_IFIFO: case S_IFSOCK: case S_IFCHR: case S_IFBLK:
		break;
	default:
		return false;
	}
	switch (inode->how) {
	case STATE_LOST:
		return true;
	case STATE_PATH:
		return inode->len && strlen(to->bytes) == inode->len;
	case STATE_HANDLE:
		return inode->len && inode->len <= FILE_HANDLE_MAX;
	default:
		return false;
	}
}

/* Whether an id may be a record's that is about to be loaded: its slot is one of those reserved, and vacant. */
static bool may_be_placed(const struct slots *slots, uint64_t id, uint32_t first)
{
	uint32_t slot = (uint32_t)id, generation = id >> 32;

	return slot >= first && slot < slots->high && generation != 0 && generation <= slots->generation &&
	       !slots_at(slots, slot)->valid;
}

static int open_handle(struct core *core, int base_fd, const struct loaded *loaded)
{
	int mount_fd = reopen(core, base_fd, O_RDONLY | O_DIRECTORY), fd;

	if (mount_fd < 0)
		return mount_fd;
	fd = file_handle_open(mount_fd, loaded->inode.handle_type, loaded->bytes, loaded->inode.len);
	close(mount_fd);
	/* What a file system says of a handle it can't make sense of. */
	return fd == -EINVAL ? -ESTALE : fd;
}

/* The descriptor of an inode that was loaded before, pinned; -ESTALE when it was not found, either. */
static int pin_base(struct core *core, uint64_t nodeid, uint32_t *slot)
{
	struct inode_record *record;
	int fd = -ESTALE;

	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, slot);
	if (record) {
		core->inodes.private[*slot].pins++;
		fd = record->type == S_IFDIR ? 0 : -ENOTDIR;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	if (fd == 0)
		fd = inode_restore(core, *slot);
	if (record && fd < 0)
		inode_unpin_unlocked(core, *slot);
	return fd;
}

static int open_below(struct core *core, int base_fd, const struct loaded *loaded)
{
	if (loaded->inode.how == STATE_HANDLE)
		return open_handle(core, base_fd, loaded);
	return open_beneath(base_fd, loaded->bytes);
}

/* The descriptor of an inode, or -errno. */
static int open_inode(struct core *core, const struct loaded *loaded)
{
	uint32_t slot;
	int base_fd = pin_base(core, loaded->inode.base, &slot), fd;

	if (base_fd < 0)
		return base_fd;
	fd = make_room(core, 1);
	if (fd == 0) {
		do
			fd = open_below(core, base_fd, loaded);
		while (fd < 0 && out_of_descriptors(core, fd));
	}
	inode_unpin_unlocked(core, slot);
	return fd;
}

/* What is open must be what the guest knows, as far as the record tells. 0 or -errno. */
static int check_inode(const struct loaded *loaded, int fd, uint32_t flags, struct inode_key *key)
{
	struct inode_handle handle;
	struct statx stat;
	int error = stat_fd(fd, &stat);

	if (error < 0)
		return error;
	key_of(&stat, key);
	if (key->type != loaded->inode.type)
		return -ESTALE;
	if (flags & STATE_TAGS) {
		file_handle_of(fd, "", &handle);
		if (handle.tag != loaded->inode.tag)
			return -ESTALE;
	}
	return 0;
}

/* Whether another nodeid stands for this inode. */
static bool is_taken(struct core *core, const struct inode_key *key, int fd)
{
	struct found found = {.fd = fd, .name = ""};
	uint32_t slot = inode_pin_key(core, key, &found);

	if (slot)
		inode_unpin_unlocked(core, slot);
	return slot != 0;
}

static void place(struct core *core, const struct loaded *loaded, const struct inode_key *key, int fd)
{
	const struct state_inode *inode = &loaded->inode;
	uint32_t slot = (uint32_t)inode->nodeid;

	pthread_mutex_lock(&core->inodes.lock);
	*inode_record(core, slot) = (struct inode_record){
		.slot = {.generation = inode->nodeid >> 32}, .dev = key->dev, .ino = key->ino, .mnt_id = key->mnt_id,
		.btime = key->btime, .nlookup = inode->nlookup, .fd = fd, .type = key->type, .base = inode->base,
	};
	/* One that the guest does not know is kept for those that are found through it, as long as this process. */
	core->inodes.private[slot] = (struct slot_private){.refs = 1};
	index_insert(core, slot);
	slots_publish(&core->inodes, slot);
	descriptor_got(core, slot);
	index_grow(core);
	pthread_mutex_unlock(&core->inodes.lock);
}

static int load_inode(struct core *core, const struct loaded *loaded, uint32_t flags)
{
	struct inode_key key;
	int fd, error;

	if (!may_be_placed(&core->inodes, loaded->inode.nodeid, INODE_FIRST))
		return -EBADMSG;
	if (loaded->inode.how == STATE_LOST)
		return loaded->inode.error && loaded->inode.error < 4096 ? -(int)loaded->inode.error : -EBADMSG;
	fd = open_inode(core, loaded);
	if (fd < 0)
		return fd;
	error = check_inode(loaded, fd, flags, &key);
	if (error == 0 && is_taken(core, &key, fd))
		error = -EEXIST;
	if (error == 0)
		place(core, loaded, &key, fd);
	else
		close(fd);
	return error;
}

void state_load(struct core *core, const uint8_t *from, uint64_t size, uint32_t flags, struct state_progress *progress)
{
	struct loaded loaded;

	*progress = (struct state_progress){0};
	while (progress->bytes < size && progress->error == 0) {
		progress->last = progress->bytes;
		if (!read_record(from + progress->bytes, size - progress->bytes, &loaded)) {
			progress->error = -EBADMSG;
			return;
		}
		progress->bytes += sizeof(loaded.inode) + state_padded(loaded.inode.len);
		progress->error = load_inode(core, &loaded, flags);
	}
}

/* Reads something of a directory that was just opened. On ext4 (fs/ext4/dir.c, ext4_dx_readdir) one that is read at its end first
 * of all is empty from then on, from the beginning too; and the guest may be at its end. */
static void start_listing(int fd)
{
	char entries[4096];

	if (syscall(SYS_getdents64, fd, entries, sizeof(entries)) < 0)
		return; /* The guest will see. */
}

int state_load_handle(struct core *core, const struct state_handle *handle)
{
	uint32_t allowed = O_ACCMODE | O_APPEND | O_SYNC | O_NONBLOCK | O_DIRECTORY | O_DIRECT | O_NOATIME;
	int fd;

	if (!may_be_placed(&core->handles, handle->fh, 1))
		return -EBADMSG;
	fd = inode_open(core, handle->nodeid, handle->flags & allowed);
	if (fd < 0)
		return fd;
	if (handle->flags & O_DIRECTORY) {
		start_listing(fd);
		/* In what was here before, it may have been another's. */
		position_forget(core, handle->fh);
	}
	handle_place(core, handle->fh, handle->nodeid, fd);
	return 0;
}
