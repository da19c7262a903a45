/* A table of fixed records with generations, on an arena (a memfd mapped shared) that outlives the worker.
 *
 * Rule 1. The arena holds plain data. Slot 0 is the header; every other record starts with struct slot_record.
 * Rule 2. `valid` is stored last when a record appears and first when it goes. What reads it after this process is
 *         another process, and the kernel ends this one between two instructions: only the compiler could reorder.
 * Rule 3. The free list, the pins and the lock are private and rebuilt by slots_open.
 * Rule 4. An id is generation << 32 | slot. It comes from the guest: slots_find checks it, nothing else takes one.
 * Rule 5. Every function but slots_open and slots_close is called with the lock held, and no system call is made under
 *         it: the caller closes what a record held after it let go of the lock.
 *
 * Lock order: inode table, handle table, lock table; no two are held at a time. A directory's position lock (ops_dir.c)
 * comes before none.
 */
#ifndef VFSD_FUSE_SLOTS_H
#define VFSD_FUSE_SLOTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SLOTS_MAGIC 0x73746f6c73736676ULL /* "vfsslots" */

/* Keeps the compiler from moving stores to the arena across it (rule 2). */
#define ordered() __asm__ __volatile__("" ::: "memory")

struct slots_header {
	uint64_t magic;
	uint32_t record_size; /* bytes */
	uint32_t generation;  /* the last one given to a record */
	uint32_t high;        /* slots from here on were never used */
	uint32_t reserved;
};

struct slot_record {
	uint32_t valid;
	uint32_t generation;
};

/* What a slot needs in this worker only. */
struct slot_private {
	uint32_t pins; /* who works with the record's descriptor: it stays open while this is not 0 */
	uint32_t next; /* of the free list, or of a hash chain */
	uint32_t refs; /* inodes: what keeps the record besides (inode.c, rule 2) */
	uint8_t used;  /* inodes: rounds that the descriptor is spared (evict.c) */
	uint8_t anchor; /* inodes: other records are found through this one's descriptor: it stays (mounts.c) */
	uint8_t moved; /* inodes: a name of it was changed since evict.c chose it */
	uint8_t plain; /* handles: what is read through it can't be asked not to wait (ops_io.c) */
};

struct slots {
	pthread_mutex_t lock;
	struct slots_header *header;
	struct slot_private *private;
	uint32_t record_size;
	uint32_t capacity; /* slots, the header's included */
	uint32_t high;     /* this worker's own copies of the header's: the arena is written, never trusted */
	uint32_t generation;
	uint32_t free;     /* 0: none */
	uint32_t count;    /* valid records */
};

/* Whether a record found in an arena is to be kept. */
typedef bool (*slots_check)(void *opaque, struct slot_record *record, uint32_t slot);

/* Attaches to an arena: formats a zeroed one, else keeps the valid records `check` agrees to. The first `first` slots
 * are never handed out. 0, -EINVAL for an arena that is no table of such records, -ENOMEM. */
int slots_open(struct slots *slots, void *arena, uint64_t size, uint32_t record_size, uint32_t first,
	       slots_check check, void *opaque);
void slots_close(struct slots *slots);

static inline struct slot_record *slots_at(const struct slots *slots, uint32_t slot)
{
	return (struct slot_record *)((char *)slots->header + (uint64_t)slot * slots->record_size);
}

/* The valid record of an id, with its slot; NULL for a stale or invented one. */
struct slot_record *slots_find(const struct slots *slots, uint64_t id, uint32_t *slot);
uint64_t slots_id(const struct slots *slots, uint32_t slot);

/* A free slot with a new generation and no valid mark, or 0 when the table is full. */
uint32_t slots_take(struct slots *slots);
/* Of a table without records, the slots below `high` are for those that have them already, with generations up to the one
 * given, and are not handed out. False when there are no such slots. */
bool slots_reserve(struct slots *slots, uint32_t high, uint32_t generation);
/* The record is complete: it gets its valid mark. */
void slots_publish(struct slots *slots, uint32_t slot);
/* The record is void. Its other fields stay readable until the slot is given back. */
void slots_revoke(struct slots *slots, uint32_t slot);
void slots_give(struct slots *slots, uint32_t slot);

/* Walks an arena no worker runs on: calls `visit` for each valid record. */
typedef void (*slots_visit)(void *opaque, const struct slot_record *record, uint32_t slot);
void slots_walk(const void *arena, uint64_t size, uint32_t record_size, slots_visit visit, void *opaque);

#endif
