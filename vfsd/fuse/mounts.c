/* The mounts on which inodes are found by file handle, and the directory of each through which they are opened.
 *
 * Rule 1. Such a directory, the anchor, is an inode of the table whose descriptor stays open while others are found
 *         through it: it outlives the worker, and a mount that no inode of the guest lies on is not held busy.
 * Rule 2. Whether a mount takes handles is tried, since it depends on the file system and on privilege
 *         (CAP_DAC_READ_SEARCH where the mount was made); the answer is kept for as long as there is room for it.
 */
#include "inode.h"

#include <errno.h>
#include <unistd.h>

static struct mount *mount_of(struct core *core, const struct inode_key *key)
{
	int i;

	for (i = 0; i < MOUNTS_MAX; i++) {
		struct mount *mount = &core->mounts[i];

		if ((mount->known || mount->uses) && mount->mnt_id == key->mnt_id && mount->dev == key->dev)
			return mount;
	}
	return NULL;
}

static struct mount *mount_through(struct core *core, uint32_t slot)
{
	int i;

	for (i = 0; i < MOUNTS_MAX; i++)
		if (core->mounts[i].uses && core->mounts[i].slot == slot)
			return &core->mounts[i];
	return NULL;
}

/* The entry of a mount, a new one if need be; NULL when every one is in use. */
static struct mount *mount_enter(struct core *core, const struct inode_key *key)
{
	struct mount *mount = mount_of(core, key);
	int i;

	if (mount)
		return mount;
	for (i = 0; i < MOUNTS_MAX; i++) {
		mount = &core->mounts[core->mounts_next++ % MOUNTS_MAX];
		if (!mount->uses) {
			*mount = (struct mount){.dev = key->dev, .mnt_id = key->mnt_id, .fd = -1};
			return mount;
		}
	}
	return NULL;
}

void mounts_open(struct core *core)
{
	int i;

	for (i = 0; i < MOUNTS_MAX; i++)
		core->mounts[i] = (struct mount){.fd = -1};
}

void mounts_close(struct core *core)
{
	int i;

	for (i = 0; i < MOUNTS_MAX; i++)
		if (core->mounts[i].fd >= 0)
			close(core->mounts[i].fd);
}

/* Opens a directory by its own handle. */
static int try_handle(struct core *core, int fd)
{
	struct inode_handle handle;
	int mount_fd, opened;

	file_handle_of(fd, "", &handle);
	if (!handle.len)
		return -EOPNOTSUPP;
	mount_fd = reopen(core, fd, O_RDONLY | O_DIRECTORY);
	if (mount_fd < 0)
		return mount_fd;
	opened = file_handle_open(mount_fd, handle.type, handle.bytes, handle.len);
	close(mount_fd);
	if (opened < 0)
		return opened;
	close(opened);
	return 0;
}

bool mount_takes_handles(struct core *core, int fd, const struct inode_key *key)
{
	bool known, takes;
	struct mount *mount;
	int error;

	pthread_mutex_lock(&core->inodes.lock);
	mount = mount_of(core, key);
	known = mount && mount->known;
	takes = mount && mount->takes;
	pthread_mutex_unlock(&core->inodes.lock);
	if (known)
		return takes;
	error = try_handle(core, fd);
	/* What fails for now, or for the caller a thread acts for, is tried again. */
	if (error == -EMFILE || error == -ENFILE || error == -ENOMEM || error == -EACCES || cred_acting(core))
		return error == 0;
	pthread_mutex_lock(&core->inodes.lock);
	mount = mount_enter(core, key);
	if (mount) {
		mount->known = true;
		mount->takes = error == 0;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	return error == 0;
}

uint32_t mount_anchor(struct core *core, const struct inode_key *key)
{
	struct mount *mount = mount_of(core, key);

	return mount && mount->uses ? mount->slot : 0;
}

bool mount_use(struct core *core, uint32_t slot)
{
	struct inode_key key = record_key(inode_record(core, slot));
	struct mount *mount = mount_through(core, slot);

	if (!mount) {
		mount = mount_enter(core, &key);
		/* It may have got another anchor since this one was chosen. */
		if (!mount || mount->uses)
			return false;
		mount->slot = slot;
		core->inodes.private[slot].anchor = 1;
		core->inodes.private[slot].refs++;
	}
	mount->uses++;
	return true;
}

bool mount_unuse(struct core *core, uint32_t slot, struct loose *loose)
{
	struct mount *mount = mount_through(core, slot);

	if (!mount || --mount->uses)
		return false;
	loose_add(loose, mount->fd);
	mount->fd = -1;
	core->inodes.private[slot].anchor = 0;
	core->inodes.private[slot].refs--;
	return true;
}

int mount_descriptor(struct core *core, uint32_t slot)
{
	struct mount *mount;
	int fd, anchor_fd, opened;

	pthread_mutex_lock(&core->inodes.lock);
	mount = mount_through(core, slot);
	fd = mount ? mount->fd : -1;
	anchor_fd = inode_record(core, slot)->fd;
	pthread_mutex_unlock(&core->inodes.lock);
	if (!mount || anchor_fd < 0)
		return -ESTALE;
	if (fd >= 0)
		return fd;
	opened = reopen(core, anchor_fd, O_RDONLY | O_DIRECTORY);
	if (opened < 0)
		return opened;
	pthread_mutex_lock(&core->inodes.lock);
	/* Another thread may have been faster. */
	if (mount->fd < 0) {
		mount->fd = opened;
		opened = -1;
	}
	fd = mount->fd;
	pthread_mutex_unlock(&core->inodes.lock);
	if (opened >= 0)
		close(opened);
	return fd;
}
