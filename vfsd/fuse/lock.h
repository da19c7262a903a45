/* The lock table's records, for lock.c (the table) and lock_host.c (what is done with their descriptors). */
#ifndef VFSD_FUSE_LOCK_H
#define VFSD_FUSE_LOCK_H

#include "internal.h"

struct lock_record {
	struct slot_record slot;
	uint64_t nodeid;
	uint64_t owner;
	uint64_t fh; /* the handle all of its locks were set through, or SEVERAL */
	int32_t fd;
	uint32_t pid; /* who locked last, in the guest */
	uint64_t reserved;
};
_Static_assert(sizeof(struct lock_record) == 48, "the arena's format");

static inline struct lock_record *lock_record(struct core *core, uint32_t slot)
{
	return (struct lock_record *)slots_at(&core->locks, slot);
}

/* The record of an owner, pinned until lock_put: its slot, or 0. */
uint32_t lock_pin(struct core *core, uint64_t nodeid, uint64_t owner);
/* The same, made when there is none yet. A slot, or -errno. */
int64_t lock_pin_or_add(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in);
void lock_put(struct core *core, uint32_t slot);
/* Notes of a pinned record who has locked, and through which handle. */
void lock_remember(struct core *core, uint32_t slot, const struct fuse_lk_in *in);

#endif
