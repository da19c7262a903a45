/* Locators: how an inode is found again once its descriptor is closed.
 *
 * Rule 1. A locator is made when a descriptor is about to be closed, from what the descriptor says then: no op pays for
 *         it before, and no rename on the host makes it wrong before.
 * Rule 2. A file handle where the mount takes them and the settings let it, else a name in a directory the table knows,
 *         looked at: if it does not lead to this inode, the descriptor stays open. A directory is opened for it only
 *         if it does: one more is open then and one less, nearer to the root, so that making room comes to an end.
 * Rule 3. An inode without a link is not located: nothing leads to it. One whose name was taken from it, but has others
 *         (what a program writes under a passing name, links to its own and unlinks), is looked for where it was looked
 *         up last, and beside where it was.
 * Rule 4. The kernel knows no path of an inode, but a directory, that was opened by file handle while no name of it was
 *         cached, whatever is looked up later: it is not located by name. state_names.c finds it in a migration.
 * Rule 5. Only what tells a later inode of the same number from this one can be located: a file handle's tag, or a birth
 *         time.
 */
#include "inode.h"

#include <dirent.h>
#include <errno.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The descriptor of a directory of the table if it is open, its record pinned as *slot; or -1. */
static int pin_directory(struct core *core, uint64_t nodeid, uint32_t *slot, struct inode_key *key)
{
	struct inode_record *record;
	int fd = -1;

	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, slot);
	if (record && record->type == S_IFDIR && record->fd >= 0) {
		core->inodes.private[*slot].pins++;
		*key = record_key(record);
		fd = record->fd;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	return fd;
}

/* Entries of a directory that are looked at for another name of an inode: a few milliseconds at most. */
#define ENTRIES_MAX 8192

/* How d_path (fs/d_path.c) marks a name that was taken away. */
static const char deleted[] = " (deleted)";

/* The record of the directory that `fd` stands for, pinned; 0 if there is none. A closed one is given the descriptor,
 * which is taken in any case. */
static uint32_t pin_parent(struct core *core, int fd)
{
	struct found found = {.fd = fd, .name = ""};
	struct loose loose = {0};
	struct inode_key key;
	struct statx stat;
	uint32_t slot = 0;

	if (stat_fd(fd, &stat) == 0) {
		key_of(&stat, &key);
		slot = inode_pin_key(core, &key, &found);
	}
	pthread_mutex_lock(&core->inodes.lock);
	if (slot && is_closed(core, slot))
		inode_adopt(core, slot, fd, &loose);
	else
		loose_add(&loose, fd);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
	return slot;
}

/* Where the path of an open inode says it is: the kernel keeps that up with every rename. */
struct place {
	char path[4096];
	char *name; /* the last component */
};

static int find_place(struct core *core, int fd, struct place *place)
{
	ssize_t n = path_of(core, fd, place->path, sizeof(place->path));

	if (n < 0)
		return (int)n;
	if (n == sizeof(place->path) - 1)
		return -ENAMETOOLONG;
	place->name = strrchr(place->path, '/');
	/* That of one without a path (rule 4) is "/". */
	return place->name && *++place->name ? 0 : -ENOENT;
}

/* The directory that an inode is in now, or -1. Nothing of the table is opened for it. */
static int open_parent(int fd, const struct inode_key *key, const struct place *place)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
			       .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
	char path[sizeof(place->path)];
	size_t len = place->name - place->path;

	if (key->type == S_IFDIR)
		return openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (place->path[0] != '/')
		return -1;
	memcpy(path, place->path, len);
	path[len] = 0;
	return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

bool name_leads(int dir_fd, const char *name, const struct inode_key *key)
{
	struct inode_key found;
	struct statx stat;

	if (stat_name(dir_fd, name, &stat) < 0)
		return false;
	key_of(&stat, &found);
	return same_key(&found, key);
}

/* Any name in a directory that leads to the inode. */
static bool find_name(struct core *core, int dir_fd, const struct inode_key *key, char name[LOCATOR_MAX + 1])
{
	int fd = reopen(core, dir_fd, O_RDONLY | O_DIRECTORY), left = ENTRIES_MAX;
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;
	bool found = false;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!found && left-- && (entry = readdir(dir))) {
		size_t len = strlen(entry->d_name);

		if (entry->d_ino != key->ino || len > LOCATOR_MAX || !name_leads(dir_fd, entry->d_name, key))
			continue;
		memcpy(name, entry->d_name, len + 1);
		found = true;
	}
	closedir(dir);
	return found;
}

/* Whether a directory leads to the inode: by the name that it is known to have, or by another once that is gone. */
static bool has_name(struct core *core, int dir_fd, const struct inode_key *key, char name[LOCATOR_MAX + 1])
{
	size_t len = strlen(name), mark = sizeof(deleted) - 1;

	if (name_leads(dir_fd, name, key))
		return true;
	return len > mark && strcmp(name + len - mark, deleted) == 0 && find_name(core, dir_fd, key, name);
}

static bool is_on_mount(int fd, const struct inode_key *key)
{
	struct inode_key found;
	struct statx stat;

	if (stat_fd(fd, &stat) < 0)
		return false;
	key_of(&stat, &found);
	return same_mount(&found, key);
}

/* A parent through which file handles of the mount of `key` can be opened, pinned; or 0. */
static uint32_t pin_parent_anchor(struct core *core, int fd, const struct inode_key *key)
{
	struct place place;
	int dir_fd;

	if (find_place(core, fd, &place) < 0)
		return 0;
	dir_fd = open_parent(fd, key, &place);
	if (dir_fd < 0)
		return 0;
	if (is_on_mount(dir_fd, key) && mount_takes_handles(core, dir_fd, key))
		return pin_parent(core, dir_fd);
	close(dir_fd);
	return 0;
}

/* The directory through which a file handle of the mount of `key` is opened, pinned; 0 if there is none. `near`: one
 * that may lie on it. */
static uint32_t pin_anchor(struct core *core, uint64_t near, int fd, const struct inode_key *key)
{
	struct inode_key root = record_key(inode_record(core, FUSE_ROOT_ID)), found;
	uint32_t slot;
	int dir_fd;

	pthread_mutex_lock(&core->inodes.lock);
	slot = mount_anchor(core, key);
	if (slot)
		core->inodes.private[slot].pins++;
	pthread_mutex_unlock(&core->inodes.lock);
	if (slot)
		return slot;
	dir_fd = pin_directory(core, same_mount(&root, key) ? FUSE_ROOT_ID : near, &slot, &found);
	if (dir_fd < 0)
		return pin_parent_anchor(core, fd, key);
	if (same_mount(&found, key) && mount_takes_handles(core, dir_fd, key))
		return slot;
	inode_unpin_unlocked(core, slot);
	return 0;
}

static int locate_by_handle(struct core *core, uint64_t near, int fd, const struct inode_key *key,
			    const struct inode_handle *handle, struct locator *to, uint32_t *base)
{
	if (!handle->len || handle->len > LOCATOR_MAX)
		return -EOPNOTSUPP;
	*base = pin_anchor(core, near, fd, key);
	if (!*base)
		return -EOPNOTSUPP;
	to->how = BY_HANDLE;
	to->handle_type = handle->type;
	to->len = handle->len;
	memcpy(to->bytes, handle->bytes, handle->len);
	return 0;
}

static int locate_by_name(struct core *core, uint64_t near, int fd, const struct inode_key *key, struct locator *to,
			  uint32_t *base)
{
	struct inode_key at;
	struct place place;
	int dir_fd, error = find_place(core, fd, &place);

	if (error < 0)
		return error;
	if (strlen(place.name) > LOCATOR_MAX)
		return -ENAMETOOLONG;
	to->how = BY_NAME;
	memcpy(to->bytes, place.name, strlen(place.name) + 1);
	dir_fd = pin_directory(core, near, base, &at);
	if (dir_fd >= 0) {
		if (has_name(core, dir_fd, key, to->bytes)) {
			to->len = strlen(to->bytes);
			return 0;
		}
		inode_unpin_unlocked(core, *base);
	}
	/* The host may have moved it, or its directory is closed. */
	dir_fd = open_parent(fd, key, &place);
	if (dir_fd >= 0 && has_name(core, dir_fd, key, to->bytes)) {
		to->len = strlen(to->bytes);
		*base = pin_parent(core, dir_fd);
		return *base ? 0 : -ENOENT;
	}
	if (dir_fd >= 0)
		close(dir_fd);
	return -ENOENT;
}

int locate_near(struct core *core, uint64_t near, int fd, const struct inode_key *key, const struct inode_handle *handle,
		int how, struct locator *to, uint32_t *base)
{
	int error = -EOPNOTSUPP;

	*to = (struct locator){.tag = handle->tag};
	if (how & BY_HANDLE)
		error = locate_by_handle(core, near, fd, key, handle, to, base);
	if (error < 0 && (how & BY_NAME))
		error = locate_by_name(core, near, fd, key, to, base);
	if (error == 0)
		to->base = slots_id(&core->inodes, *base);
	return error;
}

int locate(struct core *core, uint32_t slot, int fd, struct inode_key *key, struct locator *to, uint32_t *base)
{
	struct inode_handle handle;
	struct statx stat;
	uint64_t near;
	int how = (core->config.flags & CORE_FILE_HANDLES ? BY_HANDLE : 0) |
		  (core->config.flags & CORE_FILE_HANDLES_ONLY ? 0 : BY_NAME);
	int error = stat_fd(fd, &stat);

	if (error < 0)
		return error;
	if (stat.stx_nlink == 0)
		return -ENOENT;
	key_of(&stat, key);
	file_handle_of(fd, "", &handle);
	if (!handle.tag && !key->btime)
		return -EOPNOTSUPP;
	pthread_mutex_lock(&core->inodes.lock);
	near = inode_record(core, slot)->base;
	pthread_mutex_unlock(&core->inodes.lock);
	return locate_near(core, near, fd, key, &handle, how, to, base);
}
