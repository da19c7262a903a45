/* The index of the inode table: which slot holds a key. Private and derived. */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "inode.h"

#define FIRST_BUCKETS 1024

/* The seed keeps a guest that picks inode numbers from making one long chain (the mixer is splitmix64's). */
static uint32_t *bucket_of(struct core *core, uint64_t dev, uint64_t ino)
{
	uint64_t x = ino ^ (dev * 0x9e3779b97f4a7c15ULL) ^ core->hash_seed;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return &core->buckets[(x ^ x >> 31) & core->bucket_mask];
}

void index_insert(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);
	uint32_t *head = bucket_of(core, record->dev, record->ino);

	core->inodes.private[slot].next = *head;
	*head = slot;
}

void index_remove(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);
	uint32_t *link = bucket_of(core, record->dev, record->ino);

	while (*link != slot)
		link = &core->inodes.private[*link].next;
	*link = core->inodes.private[slot].next;
}

static uint32_t matching(struct core *core, uint32_t slot, uint64_t dev, uint64_t ino)
{
	while (slot && (inode_record(core, slot)->ino != ino || inode_record(core, slot)->dev != dev))
		slot = core->inodes.private[slot].next;
	return slot;
}

uint32_t index_first(struct core *core, const struct inode_key *key)
{
	return matching(core, *bucket_of(core, key->dev, key->ino), key->dev, key->ino);
}

uint32_t index_next(struct core *core, uint32_t slot)
{
	const struct inode_record *record = inode_record(core, slot);

	return matching(core, core->inodes.private[slot].next, record->dev, record->ino);
}

/* Twice the buckets once there are as many inodes: whether it did. Without memory for it chains just grow longer. */
bool index_grow(struct core *core)
{
	uint32_t old = core->bucket_mask + 1, i;
	uint32_t *heads = core->buckets, *grown;

	if (core->inodes.count - core->tails < old || old >= 1U << 30 || !(grown = calloc((size_t)old * 2, sizeof(*grown))))
		return false;
	core->buckets = grown;
	core->bucket_mask = old * 2 - 1;
	for (i = 0; i < old; i++) {
		uint32_t slot = heads[i];

		while (slot) {
			uint32_t next = core->inodes.private[slot].next;

			index_insert(core, slot);
			slot = next;
		}
	}
	free(heads);
	return true;
}

int index_open(struct core *core)
{
	core->buckets = calloc(FIRST_BUCKETS, sizeof(*core->buckets));
	core->bucket_mask = FIRST_BUCKETS - 1;
	if (!core->buckets)
		return -ENOMEM;
	if (getrandom(&core->hash_seed, sizeof(core->hash_seed), 0) != sizeof(core->hash_seed))
		core->hash_seed = (uintptr_t)core->buckets;
	return 0;
}

void index_close(struct core *core)
{
	free(core->buckets);
}
