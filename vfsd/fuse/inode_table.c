/* The life of the inode table: attached to an arena, emptied, counted. What it means is in inode.c. */
#include "inode.h"

#include <errno.h>

/* Whether another record has this very descriptor's inode. */
static bool is_double(struct core *core, const struct inode_key *key)
{
	uint32_t slot;

	for (slot = index_first(core, key); slot; slot = index_next(core, slot)) {
		struct inode_key known = record_key(inode_record(core, slot));

		if (!is_closed(core, slot) && same_key(&known, key))
			return true;
	}
	return false;
}

static bool check_open(struct core *core, struct inode_record *record)
{
	struct inode_key key, recorded = record_key(record);
	struct statx stat;

	if (stat_fd(record->fd, &stat) < 0)
		return false;
	key_of(&stat, &key);
	if (!same_place(&key, &recorded) || is_double(core, &key))
		return false;
	record->btime = key.btime;
	return true;
}

/* What a record says of a descriptor is checked here, what it says of others by locators_load. */
static bool inode_check(void *opaque, struct slot_record *slot_record, uint32_t slot)
{
	struct inode_record *record = (struct inode_record *)slot_record;
	struct core *core = opaque;

	if (record->slot.generation == 0 || record->fd < -1)
		return false;
	if (is_tail(record)) {
		core->tails += record->fd == -1;
		return record->fd == -1;
	}
	if (record->fd >= 0 && !check_open(core, record))
		return false;
	core->inodes.private[slot].refs = record->nlookup > 0;
	index_insert(core, slot);
	/* On the way, not at the end: the next check looks for doubles. */
	index_grow(core);
	if (record->fd >= 0)
		descriptor_got(core, slot);
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
	core->inodes.private[FUSE_ROOT_ID].refs = 1;
	index_insert(core, FUSE_ROOT_ID);
	return 0;
}

int inode_table_open(struct core *core)
{
	int error;

	error = index_open(core);
	if (error < 0)
		return error;
	error = evict_open(core);
	if (error < 0) {
		index_close(core);
		return error;
	}
	mounts_open(core);
	nlookup_recover(&core->config);
	error = slots_open(&core->inodes, core->config.inodes, core->config.inodes_size, sizeof(struct inode_record),
			   INODE_FIRST, inode_check, core);
	if (error < 0) {
		evict_close(core);
		index_close(core);
		return error;
	}
	error = root_open(core);
	if (error == 0)
		locators_load(core);
	else
		inode_table_close(core);
	return error;
}

void inode_table_close(struct core *core)
{
	mounts_close(core);
	slots_close(&core->inodes);
	evict_close(core);
	index_close(core);
}

void inode_table_reset(struct core *core)
{
	uint32_t slot, high;

	pthread_mutex_lock(&core->inodes.lock);
	high = core->inodes.high;
	pthread_mutex_unlock(&core->inodes.lock);
	for (slot = INODE_FIRST; slot < high; slot++) {
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
	count = core->inodes.count - core->tails + 1; /* the root has no mark of its own */
	pthread_mutex_unlock(&core->inodes.lock);
	return count;
}

uint64_t core_opened_count(struct core *core)
{
	uint64_t count;

	pthread_mutex_lock(&core->inodes.lock);
	count = core->evictor.opened + 1;
	pthread_mutex_unlock(&core->inodes.lock);
	return count;
}

static void collect(void *opaque, const struct slot_record *slot_record, uint32_t slot)
{
	const struct inode_record *record = (const struct inode_record *)slot_record;

	if (slot >= INODE_FIRST && record->slot.generation != 0 && record->fd >= 0 && !is_tail(record))
		collect_fd(opaque, record->fd);
}

void inode_descriptors(const struct core_config *config, struct collection *to)
{
	slots_walk(config->inodes, config->inodes_size, sizeof(struct inode_record), collect, to);
}
