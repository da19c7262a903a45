/* Locators: how an inode is found again once its descriptor is closed.
 *
 * Rule 1. A locator is made when a descriptor is about to be closed, from what the descriptor says then: no op pays for
 *         it before, and no rename on the host makes it wrong before.
 * Rule 2. A file handle where the mount takes them and the settings let it, else a name in a directory the table knows,
 *         looked at: if it does not lead to this inode, the descriptor stays open.
 * Rule 3. An inode without a link is not located: nothing leads to it.
 * Rule 4. Only what tells a later inode of the same number from this one can be located: a file handle's tag, or a birth
 *         time.
 */
#include "inode.h"

#include <errno.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The descriptor of a directory of the table, its record pinned as *slot. */
static int pin_directory(struct core *core, uint64_t nodeid, uint32_t *slot, struct inode_key *key)
{
	struct inode_record *record;
	int fd = -1;

	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, slot);
	if (record && record->type != S_IFDIR)
		record = NULL;
	if (record) {
		core->inodes.private[*slot].pins++;
		*key = record_key(record);
		fd = record->fd;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	if (!record)
		return -ESTALE;
	if (fd < 0) {
		fd = inode_restore(core, *slot, true);
		if (fd < 0)
			inode_unpin_unlocked(core, *slot);
	}
	return fd;
}

/* The directory through which a file handle of the mount of `key` is opened, pinned; 0 if there is none. `near`: one
 * that may lie on it. */
static uint32_t pin_anchor(struct core *core, uint64_t near, const struct inode_key *key)
{
	struct inode_key root = record_key(inode_record(core, FUSE_ROOT_ID)), found;
	uint32_t slot;
	int fd;

	pthread_mutex_lock(&core->inodes.lock);
	slot = mount_anchor(core, key);
	if (slot)
		core->inodes.private[slot].pins++;
	pthread_mutex_unlock(&core->inodes.lock);
	if (slot)
		return slot;
	fd = pin_directory(core, same_mount(&root, key) ? FUSE_ROOT_ID : near, &slot, &found);
	if (fd < 0)
		return 0;
	if (same_mount(&found, key) && mount_takes_handles(core, slot, fd, key))
		return slot;
	inode_unpin_unlocked(core, slot);
	return 0;
}

static int locate_by_handle(struct core *core, uint64_t near, const struct inode_key *key,
			    const struct inode_handle *handle, struct locator *to, uint32_t *base)
{
	if (!handle->len || handle->len > LOCATOR_MAX)
		return -EOPNOTSUPP;
	*base = pin_anchor(core, near, key);
	if (!*base)
		return -EOPNOTSUPP;
	to->how = BY_HANDLE;
	to->handle_type = handle->type;
	to->len = handle->len;
	memcpy(to->bytes, handle->bytes, handle->len);
	return 0;
}

/* Whether a name in a directory of the table leads to the inode, which an open descriptor keeps from being another.
 * The directory stays pinned then. */
static bool leads(struct core *core, uint64_t directory, const char *name, const struct inode_key *key, uint32_t *base)
{
	struct inode_key at, found;
	struct statx stat;
	int fd = directory ? pin_directory(core, directory, base, &at) : -1;

	if (fd < 0)
		return false;
	if (stat_name(fd, name, &stat) == 0) {
		key_of(&stat, &found);
		if (same_key(&found, key))
			return true;
	}
	inode_unpin_unlocked(core, *base);
	return false;
}

/* The path of the directory that a path's last component is in. */
static int open_parent(char *path, const char *last)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
			       .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};

	if (*path != '/')
		return -1;
	path[last - path] = 0;
	return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

/* The directory that an inode is in now, if the table knows it: the host may have moved it. */
static uint64_t find_parent(struct core *core, int fd, const struct inode_key *key, char *path, const char *last)
{
	struct found found = {.name = ""};
	struct inode_key parent;
	struct statx stat;
	uint64_t nodeid = 0;
	uint32_t slot;

	found.fd = key->type == S_IFDIR ? openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC) : open_parent(path, last);
	if (found.fd < 0)
		return 0;
	if (stat_fd(found.fd, &stat) == 0) {
		key_of(&stat, &parent);
		slot = inode_pin_key(core, &parent, &found);
		if (slot) {
			nodeid = slots_id(&core->inodes, slot);
			inode_unpin_unlocked(core, slot);
		}
	}
	close(found.fd);
	return nodeid;
}

/* The path of a descriptor tells the name: the kernel keeps it up with every rename. */
static int locate_by_name(struct core *core, uint64_t near, int fd, const struct inode_key *key, struct locator *to,
			  uint32_t *base)
{
	char number[16], path[4096], *name;
	ssize_t n;

	snprintf(number, sizeof(number), "%d", fd);
	n = readlinkat(core->config.proc_fd, number, path, sizeof(path) - 1);
	if (n <= 0)
		return -errno;
	path[n] = 0;
	name = strrchr(path, '/');
	if (n == sizeof(path) - 1 || !name || !name[1] || strlen(name + 1) > LOCATOR_MAX)
		return -ENAMETOOLONG;
	to->how = BY_NAME;
	to->len = strlen(name + 1);
	memcpy(to->bytes, name + 1, to->len + 1);
	if (leads(core, near, to->bytes, key, base))
		return 0;
	return leads(core, find_parent(core, fd, key, path, name + 1), to->bytes, key, base) ? 0 : -ENOENT;
}

int locate(struct core *core, uint32_t slot, int fd, struct inode_key *key, struct locator *to, uint32_t *base)
{
	struct inode_handle handle;
	struct statx stat;
	uint64_t near;
	int error = stat_fd(fd, &stat);

	if (error < 0)
		return error;
	if (stat.stx_nlink == 0)
		return -ENOENT;
	key_of(&stat, key);
	file_handle_of(fd, "", &handle);
	if (!handle.tag && !key->btime)
		return -EOPNOTSUPP;
	*to = (struct locator){.tag = handle.tag};
	pthread_mutex_lock(&core->inodes.lock);
	near = inode_record(core, slot)->base;
	pthread_mutex_unlock(&core->inodes.lock);
	error = -EOPNOTSUPP;
	if (core->config.flags & CORE_FILE_HANDLES)
		error = locate_by_handle(core, near, key, &handle, to, base);
	if (error < 0 && !(core->config.flags & CORE_FILE_HANDLES_ONLY))
		error = locate_by_name(core, near, fd, key, to, base);
	if (error == 0)
		to->base = slots_id(&core->inodes, *base);
	return error;
}
