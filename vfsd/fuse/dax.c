/* DAX: which files the guest maps into its window instead of reading and writing them (fs/fuse/dax.c is its half).
 *
 * Rule 1. The guest settles it when it first sees an inode, and a change of mind takes effect when it has forgotten the
 *         inode (fs/fuse/dax.c, fuse_dax_dontcache). A mapping that fails is an I/O error there: it has no other way to
 *         the data. So what may not be mappable is not offered.
 * Rule 2. A mapping is one for writing, whatever it is used for. While it lives, the host can't execute the file
 *         (ETXTBSY), and what the host executes can't be mapped: executables are left out. So is what lies on
 *         overlayfs, where an open for writing copies.
 * Rule 3. A file that thrashes is remembered by what it is on the host: that it is not offered any more makes the guest
 *         forget it, and with it the nodeid.
 * Rule 4. The window is the control process's. It is told when an inode that was mapped has gone.
 */
#include "inode.h"

#include <sys/socket.h>
#include <sys/statvfs.h>

bool dax_possible(const struct core *core)
{
	struct statvfs fs;

	return core->config.window_fd >= 0 && core->root_traits & TRAIT_MAPS &&
	       fstatvfs(core->config.root_fd, &fs) == 0 && !(fs.f_flag & ST_RDONLY);
}

static bool suits(const struct core *core, const struct statx *stat)
{
	struct inode_key key;

	if (!S_ISREG(stat->stx_mode) || stat->stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND))
		return false;
	if (core->config.flags & CORE_DAX_ALWAYS)
		return true;
	key_of(stat, &key);
	return core->can_map && key.dev == core->root_dev && !(stat->stx_mode & 0111) &&
	       stat->stx_size >= core->config.dax_min && stat->stx_size <= core->config.dax_max;
}

/* Where it is known that an inode thrashed, and its digest. The last one that comes there stays. */
static uint64_t *thrashed(struct core *core, const struct inode_record *record, uint64_t *digest)
{
	uint64_t mix = (record->ino ^ (record->dev << 32) ^ (uint64_t)record->btime) * 0x9e3779b97f4a7c15ULL;

	*digest = mix | 1;
	return &core->config.session->thrashed[mix >> 57];
}

static bool suitable(struct core *core, const struct inode_record *record)
{
	uint64_t digest;

	return *thrashed(core, record, &digest) != digest;
}

uint32_t dax_attr(struct core *core, uint64_t nodeid, const struct statx *stat)
{
	struct inode_record *record;
	bool offered = false;
	uint32_t slot;

	/* A mount that has agreed to it outlives a window that is no more. */
	if (!negotiated(core, FUSE_HAS_INODE_DAX) || core->config.window_fd < 0 || !suits(core, stat))
		return 0;
	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, &slot);
	if (record && (core->config.flags & CORE_DAX_ALWAYS ||
		       (suitable(core, record) && dax_room_take(core, slot, stat->stx_size)))) {
		record->dax |= DAX_OFFERED;
		offered = true;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	return offered ? FUSE_ATTR_DAX : 0;
}

bool dax_offered(struct core *core, uint64_t nodeid)
{
	struct inode_record *record;
	uint32_t slot;
	bool offered;

	if (!negotiated(core, FUSE_MAP_ALIGNMENT))
		return false;
	/* A guest that does not ask for each file maps them all. */
	if (!negotiated(core, FUSE_HAS_INODE_DAX))
		return true;
	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, &slot);
	offered = record && record->dax & DAX_OFFERED;
	pthread_mutex_unlock(&core->inodes.lock);
	return offered;
}

void dax_note(struct core *core, uint64_t nodeid, uint32_t what)
{
	struct inode_record *record;
	uint64_t digest;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, &slot);
	if (record && what == DAX_UNSUITABLE)
		*thrashed(core, record, &digest) = digest;
	else if (record)
		record->dax |= what;
	pthread_mutex_unlock(&core->inodes.lock);
}

void dax_gone(struct core *core, uint32_t slot)
{
	struct window_question question = {.kind = WINDOW_FORGET, .fd = -1, .nodeid = slots_id(&core->inodes, slot)};

	dax_room_gone(core, slot);
	if (!(inode_record(core, slot)->dax & DAX_MAPPED))
		return;
	/* Where it finds no room, the mappings stay until the guest puts others in their place. */
	send(core->config.window_fd, &question, sizeof(question), MSG_DONTWAIT | MSG_NOSIGNAL);
}
