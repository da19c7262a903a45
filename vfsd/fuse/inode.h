/* The inode table's records and their index, for inode.c (the table) and inode_index.c. */
#ifndef VFSD_FUSE_INODE_H
#define VFSD_FUSE_INODE_H

#include "internal.h"

struct inode_record {
	struct slot_record slot;
	uint64_t dev;
	uint64_t ino;
	uint64_t mnt_id;
	int64_t btime;
	uint64_t nlookup;
	int32_t fd;
	uint32_t type;
	uint64_t stamp; /* of the last open that a later one may be compared with (cache.c), 0: none */
};
_Static_assert(sizeof(struct inode_record) == 64, "one cache line, and the arena's format");

static inline struct inode_record *inode_record(struct core *core, uint32_t slot)
{
	return (struct inode_record *)slots_at(&core->inodes, slot);
}

static inline struct inode_key record_key(const struct inode_record *record)
{
	return (struct inode_key){record->dev, record->ino, record->mnt_id, record->btime, record->type};
}

/* The same inode, but for what a file system may change about it: its birth time, at a copy-up of overlayfs. */
bool same_place(const struct inode_key *a, const struct inode_key *b);
bool same_key(const struct inode_key *a, const struct inode_key *b);
typedef bool (*key_match)(const struct inode_key *a, const struct inode_key *b);

/* The index from keys to slots: a private hash table, derived from the records. All under the table's lock but open and
 * close. index_open returns 0 or -ENOMEM; index_find 0 when there is no match; index_grow whether it grew. */
int index_open(struct core *core);
void index_close(struct core *core);
void index_insert(struct core *core, uint32_t slot);
void index_remove(struct core *core, uint32_t slot);
uint32_t index_find(struct core *core, const struct inode_key *key, key_match match);
bool index_grow(struct core *core);

#endif
