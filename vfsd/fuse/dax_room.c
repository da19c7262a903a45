/* How much of the DAX window is promised: so that files which are open at the same time don't thrash in it.
 *
 * Nothing helps a file that thrashes until it is closed, so a file is offered only where it finds room beside the others.
 *
 * Rule 1. An open file takes its ranges as long as it is open. One that was merely offered takes them for a second or
 *         two, by when a guest that opens it asks again (as long as attributes are valid by default).
 * Rule 2. A file that was opened while there was no room has a cache in the guest by now, and keeps it: it is not
 *         offered until the guest has forgotten it.
 * Rule 3. All of it but rule 2's mark is private and derived: a new worker counts anew what is open.
 */
#include "inode.h"

#include <errno.h>
#include <sys/mman.h>
#include <time.h>

/* A guest maps ranges of 2 MiB (fs/fuse/dax.c, FUSE_DAX_SZ). */
#define RANGE_SHIFT 21

/* Of an inode; all zero for most. */
struct dax_use {
	uint32_t handles; /* that map it */
	uint32_t ranges;  /* that it takes while there are any, or while it is offered */
	uint32_t offered; /* the second of the last offer, 0: none */
};

static uint32_t most(const struct core *core)
{
	uint64_t ranges = core->config.dax_room >> RANGE_SHIFT;

	return ranges > UINT32_MAX / 4 ? UINT32_MAX / 4 : ranges ? (uint32_t)ranges : 1;
}

/* A file that is too large, and yet to be mapped as its user says, takes all there is. */
static uint32_t ranges_of(const struct core *core, uint64_t size)
{
	uint64_t ranges = size ? ((size - 1) >> RANGE_SHIFT) + 1 : 1;

	return ranges > most(core) ? most(core) : (uint32_t)ranges;
}

/* Forgets the offers that are too old. */
static void turn(struct dax_room *room)
{
	struct timespec time;
	uint32_t now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
	now = (uint32_t)time.tv_sec + 2;
	if (now == room->second)
		return;
	room->offered[now & 1] = 0;
	if (now != room->second + 1)
		room->offered[room->second & 1] = 0;
	room->second = now;
}

static void withdraw(struct dax_room *room, struct dax_use *use)
{
	turn(room);
	if (use->offered && (use->offered == room->second || use->offered == room->second - 1))
		room->offered[use->offered & 1] -= use->ranges;
	use->offered = 0;
}

int dax_room_open(struct core *core)
{
	size_t size = (size_t)core->inodes.capacity * sizeof(struct dax_use);

	if (!core->can_map || core->config.flags & CORE_DAX_ALWAYS)
		return 0;
	core->room.uses = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (core->room.uses != MAP_FAILED)
		return 0;
	core->room.uses = NULL;
	return -ENOMEM;
}

void dax_room_close(struct core *core)
{
	if (core->room.uses)
		munmap(core->room.uses, (size_t)core->inodes.capacity * sizeof(struct dax_use));
}

bool dax_room_take(struct core *core, uint32_t slot, uint64_t size)
{
	struct inode_record *record = inode_record(core, slot);
	struct dax_room *room = &core->room;
	struct dax_use *use;

	if (!room->uses)
		return true;
	use = &room->uses[slot];
	if (use->handles)
		return true;
	withdraw(room, use);
	use->ranges = ranges_of(core, size);
	record->dax &= ~DAX_CROWDED;
	if (record->dax & DAX_PLAIN || room->open + use->ranges > most(core))
		record->dax |= DAX_CROWDED;
	/* Where mere offers are in the way, it may be offered the next time. */
	if (record->dax & DAX_CROWDED ||
	    room->open + room->offered[0] + room->offered[1] + use->ranges > most(core))
		return false;
	use->offered = room->second;
	room->offered[room->second & 1] += use->ranges;
	return true;
}

bool dax_opened(struct core *core, uint64_t nodeid, int fd)
{
	struct inode_record *record;
	bool maps = false;
	struct stat stat;
	uint32_t slot;

	if (!core->room.uses || fstat(fd, &stat) < 0)
		return false;
	pthread_mutex_lock(&core->inodes.lock);
	record = inode_at(core, nodeid, &slot);
	if (record && record->dax & DAX_CROWDED) {
		record->dax |= DAX_PLAIN;
	} else if (record && record->dax & DAX_OFFERED) {
		struct dax_use *use = &core->room.uses[slot];

		maps = true;
		if (use->handles++ == 0) {
			withdraw(&core->room, use);
			use->ranges = ranges_of(core, (uint64_t)stat.st_size);
			core->room.open += use->ranges;
		}
	}
	pthread_mutex_unlock(&core->inodes.lock);
	return maps;
}

void dax_closed(struct core *core, uint64_t nodeid)
{
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	if (core->room.uses && inode_at(core, nodeid, &slot) && core->room.uses[slot].handles &&
	    --core->room.uses[slot].handles == 0)
		core->room.open -= core->room.uses[slot].ranges;
	pthread_mutex_unlock(&core->inodes.lock);
}

void dax_room_gone(struct core *core, uint32_t slot)
{
	struct dax_use *use;

	if (!core->room.uses)
		return;
	use = &core->room.uses[slot];
	if (use->handles)
		core->room.open -= use->ranges;
	else if (use->offered)
		withdraw(&core->room, use);
	if (use->ranges)
		*use = (struct dax_use){0};
}
