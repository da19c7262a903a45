/* The handle table: which open descriptor an fh stands for.
 *
 * Rule 1. A live record holds one pin. RELEASE revokes it; the descriptor is closed with the last pin, so that a READ
 *         on another thread keeps the file it reads.
 * Rule 2. A revoked record's slot is not given out again before its last pin is gone.
 */
#include "internal.h"

#include <errno.h>
#include <unistd.h>

#define FIRST_SLOT 1

struct handle_record {
	struct slot_record slot;
	uint64_t nodeid;
	int32_t fd;
	uint32_t maps; /* as dax_opened said */
	uint32_t reserved[2];
};
_Static_assert(sizeof(struct handle_record) == HANDLE_RECORD, "the arena's format");

static struct handle_record *record_at(struct core *core, uint32_t slot)
{
	return (struct handle_record *)slots_at(&core->handles, slot);
}

/* A record worth keeping, as far as the record alone can tell. */
static bool plausible(const struct handle_record *record)
{
	return record->slot.generation != 0 && record->fd >= 0;
}

bool descriptor_is_of(struct core *core, int fd, uint64_t nodeid)
{
	struct inode_key key, named;
	struct statx stat;

	if (stat_fd(fd, &stat) < 0 || inode_key(core, nodeid, &named) < 0)
		return false;
	key_of(&stat, &key);
	return key.ino == named.ino && key.dev == named.dev;
}

static bool handle_check(void *opaque, struct slot_record *slot_record, uint32_t slot)
{
	struct handle_record *record = (struct handle_record *)slot_record;
	struct core *core = opaque;

	if (!plausible(record) || !descriptor_is_of(core, record->fd, record->nodeid))
		return false;
	core->handles.private[slot].pins = 1;
	record->maps = record->maps && dax_opened(core, record->nodeid, record->fd);
	return true;
}

int handle_table_open(struct core *core)
{
	return slots_open(&core->handles, core->config.handles, core->config.handles_size,
			  sizeof(struct handle_record), FIRST_SLOT, handle_check, core);
}

void handle_table_close(struct core *core)
{
	slots_close(&core->handles);
}

/* Drops one pin. Returns the descriptor to close once the lock is free, or -1. */
static int unpin(struct core *core, uint32_t slot)
{
	if (--core->handles.private[slot].pins)
		return -1;
	slots_give(&core->handles, slot);
	return record_at(core, slot)->fd;
}

int handle_add(struct core *core, uint64_t nodeid, int fd, uint64_t *fh)
{
	bool maps = dax_opened(core, nodeid, fd);
	struct memo *memo = memo_current();
	struct handle_record *record;
	uint32_t slot;

	pthread_mutex_lock(&core->handles.lock);
	/* As with inodes: nothing outlives a DESTROY. */
	slot = core->config.session->mounted ? slots_take(&core->handles) : 0;
	if (slot) {
		record = record_at(core, slot);
		record->nodeid = nodeid;
		record->fd = fd;
		record->maps = maps;
		core->handles.private[slot].pins = 1;
		core->handles.private[slot].plain = 0;
		*fh = slots_id(&core->handles, slot);
		/* Before there is such a handle, so that there is none that nobody knows. */
		if (memo)
			memo->fh = *fh;
		slots_publish(&core->handles, slot);
	}
	pthread_mutex_unlock(&core->handles.lock);
	if (!slot && maps)
		dax_closed(core, nodeid);
	return slot ? 0 : -ENOMEM;
}

int handle_record_of(struct core *core, uint32_t slot, uint64_t *nodeid)
{
	*nodeid = record_at(core, slot)->nodeid;
	return record_at(core, slot)->fd;
}

void handle_place(struct core *core, uint64_t fh, uint64_t nodeid, int fd)
{
	uint32_t slot = (uint32_t)fh;

	pthread_mutex_lock(&core->handles.lock);
	*record_at(core, slot) = (struct handle_record){.slot = {.generation = fh >> 32}, .nodeid = nodeid, .fd = fd};
	core->handles.private[slot] = (struct slot_private){.pins = 1};
	slots_publish(&core->handles, slot);
	pthread_mutex_unlock(&core->handles.lock);
}

int handle_get_data(struct core *core, uint64_t fh, uint8_t **plain)
{
	struct handle_record *record;
	int fd = -EBADF;
	uint32_t slot;

	pthread_mutex_lock(&core->handles.lock);
	record = (struct handle_record *)slots_find(&core->handles, fh, &slot);
	if (record) {
		core->handles.private[slot].pins++;
		*plain = &core->handles.private[slot].plain;
		fd = record->fd;
	}
	pthread_mutex_unlock(&core->handles.lock);
	return fd;
}

int handle_get(struct core *core, uint64_t fh)
{
	uint8_t *plain;

	return handle_get_data(core, fh, &plain);
}

int handle_of_inode(struct core *core, uint64_t nodeid, uint64_t *fh)
{
	uint32_t slot;
	int fd = -EBADF;

	pthread_mutex_lock(&core->handles.lock);
	for (slot = FIRST_SLOT; slot < core->handles.high && fd < 0; slot++) {
		struct handle_record *record = record_at(core, slot);

		if (record->slot.valid != 1 || record->nodeid != nodeid)
			continue;
		core->handles.private[slot].pins++;
		*fh = slots_id(&core->handles, slot);
		fd = record->fd;
	}
	pthread_mutex_unlock(&core->handles.lock);
	return fd;
}

void handle_put(struct core *core, uint64_t fh)
{
	uint32_t slot = (uint32_t)fh;
	int fd = -1;

	/* The record may be revoked by now; its slot and generation are still those handle_get found. */
	pthread_mutex_lock(&core->handles.lock);
	if (slot && slot < core->handles.high && slots_id(&core->handles, slot) == fh &&
	    core->handles.private[slot].pins)
		fd = unpin(core, slot);
	pthread_mutex_unlock(&core->handles.lock);
	if (fd >= 0)
		close(fd);
}

int handle_release(struct core *core, uint64_t fh)
{
	struct handle_record *record;
	uint64_t nodeid;
	uint32_t slot;
	int fd = -1;
	bool maps;

	pthread_mutex_lock(&core->handles.lock);
	record = (struct handle_record *)slots_find(&core->handles, fh, &slot);
	if (!record) {
		pthread_mutex_unlock(&core->handles.lock);
		return -EBADF;
	}
	nodeid = record->nodeid;
	maps = record->maps;
	slots_revoke(&core->handles, slot);
	fd = unpin(core, slot);
	pthread_mutex_unlock(&core->handles.lock);
	if (maps)
		dax_closed(core, nodeid);
	if (fd >= 0)
		close(fd);
	return 0;
}

void handle_table_reset(struct core *core)
{
	uint32_t slot, high;

	pthread_mutex_lock(&core->handles.lock);
	high = core->handles.high;
	pthread_mutex_unlock(&core->handles.lock);
	for (slot = FIRST_SLOT; slot < high; slot++) {
		uint64_t fh;

		pthread_mutex_lock(&core->handles.lock);
		fh = slots_id(&core->handles, slot);
		pthread_mutex_unlock(&core->handles.lock);
		handle_release(core, fh);
	}
}

uint64_t core_handle_count(struct core *core)
{
	uint64_t count;

	pthread_mutex_lock(&core->handles.lock);
	count = core->handles.count;
	pthread_mutex_unlock(&core->handles.lock);
	return count;
}

static void collect(void *opaque, const struct slot_record *slot_record, uint32_t slot)
{
	const struct handle_record *record = (const struct handle_record *)slot_record;

	if (plausible(record))
		collect_fd(opaque, record->fd);
}

void handle_descriptors(const struct core_config *config, struct collection *to)
{
	slots_walk(config->handles, config->handles_size, sizeof(struct handle_record), collect, to);
}
