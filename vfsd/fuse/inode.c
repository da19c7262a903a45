/* The inode table: which host inode a nodeid stands for.
 *
 * Rule 1. A nodeid stands for one host inode for its whole life. The record's O_PATH descriptor keeps that inode, and
 *         so its inode number, from being used again; a file system that re-uses numbers all the same is told by the
 *         birth time and the type, which are part of the key.
 * Rule 2. `nlookup` is the guest's count and untrusted: it saturates. A record with nlookup > 0 holds one pin. The last
 *         pin ends the record, so a FORGET cannot close a descriptor another thread works on.
 * Rule 3. The hash index is private and derived.
 * Rule 4. The root is slot 1 with generation 0 (FUSE_ROOT_ID). Its descriptor is the configuration's; it never goes.
 */
#include "inode.h"

#include <errno.h>
#include <unistd.h>

#define FIRST_SLOT 2

/* A record worth keeping, as far as the record alone can tell. */
static bool plausible(const struct inode_record *record)
{
	return record->slot.generation != 0 && record->nlookup > 0 && record->fd >= 0;
}

static bool inode_check(void *opaque, struct slot_record *slot_record, uint32_t slot)
{
	struct inode_record *record = (struct inode_record *)slot_record;
	struct inode_key key, recorded = record_key(record);
	struct core *core = opaque;
	struct statx stat;

	if (!plausible(record) || stat_fd(record->fd, &stat) < 0)
		return false;
	key_of(&stat, &key);
	if (!same_place(&key, &recorded) || index_find(core, &key, same_key))
		return false;
	record->btime = key.btime;
	core->inodes.private[slot].pins = 1;
	index_insert(core, slot);
	return true;
}

static int root_open(struct core *core)
{
	struct inode_record *root = inode_record(core, FUSE_ROOT_ID);
	struct inode_key key;
	struct statx stat;
	int error = stat_fd(core->config.root_fd, &stat);

	if (error < 0)
		return error;
	key_of(&stat, &key);
	if (key.type != S_IFDIR)
		return -ENOTDIR;
	core->root_dev = key.dev;
	*root = (struct inode_record){
		.slot = {.valid = 1}, .dev = key.dev, .ino = key.ino, .mnt_id = key.mnt_id, .btime = key.btime,
		.nlookup = 1, .fd = core->config.root_fd, .type = key.type,
	};
	core->inodes.private[FUSE_ROOT_ID].pins = 1;
	index_insert(core, FUSE_ROOT_ID);
	return 0;
}

int inode_table_open(struct core *core)
{
	int error;

	error = index_open(core);
	if (error < 0)
		return error;
	error = slots_open(&core->inodes, core->config.inodes, core->config.inodes_size, sizeof(struct inode_record),
			   FIRST_SLOT, inode_check, core);
	if (error < 0) {
		index_close(core);
		return error;
	}
	while (index_grow(core))
		;
	error = root_open(core);
	if (error < 0)
		inode_table_close(core);
	return error;
}

void inode_table_close(struct core *core)
{
	slots_close(&core->inodes);
	index_close(core);
}

/* Drops one pin. Returns the descriptor to close once the lock is free, or -1. */
static int unpin(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);

	if (--core->inodes.private[slot].pins)
		return -1;
	slots_revoke(&core->inodes, slot);
	index_remove(core, slot);
	slots_give(&core->inodes, slot);
	return record->fd;
}

static void close_dropped(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* A record the guest may name: it has looked it up and not forgotten it. */
static struct inode_record *known(struct core *core, uint64_t nodeid, uint32_t *slot)
{
	struct inode_record *record = (struct inode_record *)slots_find(&core->inodes, nodeid, slot);

	return record && record->nlookup ? record : NULL;
}

int inode_get_key(struct core *core, uint64_t nodeid, struct inode_key *key)
{
	struct inode_record *record;
	int fd = -ESTALE;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	record = known(core, nodeid, &slot);
	if (record) {
		core->inodes.private[slot].pins++;
		*key = record_key(record);
		fd = record->fd;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	return fd;
}

int inode_get(struct core *core, uint64_t nodeid, uint32_t *mode)
{
	struct inode_key key;
	int fd = inode_get_key(core, nodeid, &key);

	if (fd >= 0 && mode)
		*mode = key.type;
	return fd;
}

void inode_put(struct core *core, uint64_t nodeid)
{
	int fd = -1;
	uint32_t slot;

	/* A pinned record is valid, so it is found by any id that inode_get took. */
	pthread_mutex_lock(&core->inodes.lock);
	if (slots_find(&core->inodes, nodeid, &slot) && core->inodes.private[slot].pins)
		fd = unpin(core, slot);
	pthread_mutex_unlock(&core->inodes.lock);
	close_dropped(fd);
}

static uint64_t raise_nlookup(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);

	if (record->nlookup == 0)
		core->inodes.private[slot].pins++;
	if (record->nlookup < UINT64_MAX)
		record->nlookup++;
	return slots_id(&core->inodes, slot);
}

/* A record that differs in the birth time only is another inode, or the same on overlayfs, where a copy-up changes it.
 * Its own descriptor knows: the record follows. The nodeid, nlookup raised, or 0. Called, and returns, with the lock. */
static uint64_t find_reborn(struct core *core, const struct inode_key *key, int *dropped)
{
	uint32_t slot = index_find(core, key, same_place);
	struct inode_record *record = inode_record(core, slot);
	struct inode_key now = {0};
	uint64_t nodeid = 0;
	struct statx stat;

	if (!slot)
		return 0;
	core->inodes.private[slot].pins++;
	pthread_mutex_unlock(&core->inodes.lock);
	if (stat_fd(record->fd, &stat) == 0)
		key_of(&stat, &now);
	pthread_mutex_lock(&core->inodes.lock);
	if (same_key(&now, key)) {
		record->btime = key->btime;
		nodeid = raise_nlookup(core, slot);
	}
	*dropped = unpin(core, slot);
	return nodeid;
}

uint64_t inode_find(struct core *core, const struct inode_key *key)
{
	uint64_t nodeid;
	int dropped = -1;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	slot = index_find(core, key, same_key);
	nodeid = slot ? raise_nlookup(core, slot) : find_reborn(core, key, &dropped);
	pthread_mutex_unlock(&core->inodes.lock);
	close_dropped(dropped);
	return nodeid;
}

static uint32_t insert(struct core *core, const struct inode_key *key, int fd)
{
	/* A request that DESTROY overtook leaves nothing behind. */
	uint32_t slot = core->config.session->mounted ? slots_take(&core->inodes) : 0;
	struct inode_record *record;

	if (!slot)
		return 0;
	record = inode_record(core, slot);
	record->dev = key->dev;
	record->ino = key->ino;
	record->mnt_id = key->mnt_id;
	record->btime = key->btime;
	record->type = key->type;
	record->nlookup = 0;
	record->fd = fd;
	record->stamp = 0;
	index_insert(core, slot);
	slots_publish(&core->inodes, slot);
	index_grow(core);
	return slot;
}

int inode_add(struct core *core, const struct inode_key *key, int fd, uint64_t *nodeid)
{
	uint32_t slot;
	int unused = fd;

	pthread_mutex_lock(&core->inodes.lock);
	/* Another thread may have added it since inode_find. */
	slot = index_find(core, key, same_key);
	if (!slot && (slot = insert(core, key, fd)))
		unused = -1;
	if (slot)
		*nodeid = raise_nlookup(core, slot);
	pthread_mutex_unlock(&core->inodes.lock);
	close_dropped(unused);
	return slot ? 0 : -ENOMEM;
}

void inode_forget(struct core *core, uint64_t nodeid, uint64_t nlookup)
{
	struct inode_record *record;
	bool forgotten = false;
	int fd = -1;
	uint32_t slot;

	if (nodeid == FUSE_ROOT_ID || nlookup == 0)
		return;
	pthread_mutex_lock(&core->inodes.lock);
	record = known(core, nodeid, &slot);
	if (record) {
		record->nlookup -= nlookup < record->nlookup ? nlookup : record->nlookup;
		forgotten = record->nlookup == 0;
		if (forgotten)
			fd = unpin(core, slot);
	}
	pthread_mutex_unlock(&core->inodes.lock);
	close_dropped(fd);
	/* A lock that nobody can name any more is in everybody's way. */
	if (forgotten)
		lock_release_handle(core, nodeid, EVERY_HANDLE);
}

bool inode_stamp(struct core *core, uint64_t nodeid, uint64_t stamp)
{
	struct inode_record *record;
	bool same = false;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	record = known(core, nodeid, &slot);
	if (record) {
		same = stamp && record->stamp == stamp;
		record->stamp = stamp;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	return same;
}

void inode_table_reset(struct core *core)
{
	uint32_t slot, high;

	pthread_mutex_lock(&core->inodes.lock);
	high = core->inodes.high;
	pthread_mutex_unlock(&core->inodes.lock);
	for (slot = FIRST_SLOT; slot < high; slot++) {
		uint64_t nodeid;

		pthread_mutex_lock(&core->inodes.lock);
		nodeid = slots_id(&core->inodes, slot);
		pthread_mutex_unlock(&core->inodes.lock);
		inode_forget(core, nodeid, UINT64_MAX);
	}
}

uint64_t core_inode_count(struct core *core)
{
	uint64_t count;

	pthread_mutex_lock(&core->inodes.lock);
	count = core->inodes.count + 1; /* the root has no mark of its own */
	pthread_mutex_unlock(&core->inodes.lock);
	return count;
}

static void collect(void *opaque, const struct slot_record *slot_record, uint32_t slot)
{
	const struct inode_record *record = (const struct inode_record *)slot_record;

	if (slot >= FIRST_SLOT && plausible(record))
		collect_fd(opaque, record->fd);
}

void inode_descriptors(const struct core_config *config, struct collection *to)
{
	slots_walk(config->inodes, config->inodes_size, sizeof(struct inode_record), collect, to);
}
