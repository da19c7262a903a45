/* The inode table's records, for the files that work on them: inode.c and inode_table.c (the table), inode_index.c (from keys to slots),
 * locate.c and locator.c (how an inode is found again), mounts.c (through which descriptor), evict.c (which is closed), restore.c (and opened again),
 * state_save.c, state_names.c and state_load.c (what a migration takes along).
 *
 * Every function here marked "locked" is called, and returns, with the table's lock held.
 */
#ifndef VFSD_FUSE_INODE_H
#define VFSD_FUSE_INODE_H

#include "internal.h"

/* The first slot after the header's and the root's. */
#define INODE_FIRST 2

/* How an inode without a descriptor is found. */
#define BY_NAME 1   /* a name in the directory `base` */
#define BY_HANDLE 2 /* a file handle, opened through the directory `base` of the same mount */

#define LOCATOR_INLINE 36
#define TAIL_TEXT 72
#define TAILS_MAX 4
#define LOCATOR_MAX (LOCATOR_INLINE + TAILS_MAX * TAIL_TEXT) /* bytes of a name or a handle */

/* Slot 0. What follows the table's own is nlookup.c's: a change of the guest's count that is being made. */
struct inode_header {
	struct slots_header slots;
	uint32_t changing;       /* 1: what follows holds, and is what there was before */
	uint32_t change_slot;
	uint64_t change_nlookup;
	uint32_t change_memo;    /* index */
	uint32_t change_steps;
};
_Static_assert(sizeof(struct inode_header) <= INODE_RECORD, "it fits its slot");

struct inode_record {
	struct slot_record slot;
	uint64_t dev;
	uint64_t ino;
	uint64_t mnt_id;
	int64_t btime;
	uint64_t nlookup;
	int32_t fd;       /* O_PATH, or -1 while it is closed: then all that follows `stamp` holds */
	uint32_t type;    /* S_IFMT bits; 0 marks a tail */
	uint64_t stamp;   /* of the last open that a later one may be compared with (cache.c), 0: none */
	uint64_t base;    /* nodeid. With a descriptor: the directory it was last looked up in, a hint */
	uint64_t tag;     /* of its file handle, 0 for none: the inode number of a closed inode may be used again */
	uint8_t how;      /* BY_ */
	uint8_t dax;      /* DAX_ */
	uint16_t len;     /* of the locator, bytes */
	int32_t handle_type;
	uint32_t tail;    /* slot that goes on with the locator, 0: none */
	char bytes[LOCATOR_INLINE];
};
_Static_assert(sizeof(struct inode_record) == INODE_RECORD, "two cache lines, and the arena's format");

/* What of a locator does not fit its record. `fd` is -1 and `type` 0, where a record has its own. */
struct tail_record {
	struct slot_record slot;
	uint64_t owner;   /* nodeid */
	uint32_t next;    /* slot, 0: the last */
	uint32_t reserved[7];
	int32_t fd;
	uint32_t type;
	char text[TAIL_TEXT];
};
_Static_assert(sizeof(struct tail_record) == sizeof(struct inode_record), "one arena holds both");
_Static_assert(offsetof(struct tail_record, type) == offsetof(struct inode_record, type), "type tells them apart");
_Static_assert(offsetof(struct tail_record, fd) == offsetof(struct inode_record, fd), "a tail has no descriptor");

/* A locator outside the arena. */
struct locator {
	uint64_t base;
	uint64_t tag;
	uint8_t how;
	uint16_t len;
	int32_t handle_type;
	char bytes[LOCATOR_MAX + 1]; /* NUL-terminated */
};

static inline struct inode_record *inode_record(struct core *core, uint32_t slot)
{
	return (struct inode_record *)slots_at(&core->inodes, slot);
}

static inline struct tail_record *tail_record(struct core *core, uint32_t slot)
{
	return (struct tail_record *)slots_at(&core->inodes, slot);
}

static inline bool is_tail(const struct inode_record *record)
{
	return record->type == 0;
}

static inline bool is_closed(struct core *core, uint32_t slot)
{
	return inode_record(core, slot)->fd < 0;
}

static inline struct inode_key record_key(const struct inode_record *record)
{
	return (struct inode_key){record->dev, record->ino, record->mnt_id, record->btime, record->type};
}

/* The same inode, but for what a file system may change about it: its birth time, at a copy-up of overlayfs. */
static inline bool same_place(const struct inode_key *a, const struct inode_key *b)
{
	return a->ino == b->ino && a->dev == b->dev && a->mnt_id == b->mnt_id && a->type == b->type;
}

static inline bool same_key(const struct inode_key *a, const struct inode_key *b)
{
	return same_place(a, b) && a->btime == b->btime;
}

static inline bool same_mount(const struct inode_key *a, const struct inode_key *b)
{
	return a->mnt_id == b->mnt_id && a->dev == b->dev;
}

/* inode_index.c: a private hash table, derived from the records. All locked but open and close. index_open returns 0 or
 * -ENOMEM; index_first and index_next the slots that may hold a key, 0 after the last; index_grow whether it grew. */
int index_open(struct core *core);
void index_close(struct core *core);
void index_insert(struct core *core, uint32_t slot);
void index_remove(struct core *core, uint32_t slot);
uint32_t index_first(struct core *core, const struct inode_key *key);
uint32_t index_next(struct core *core, uint32_t slot);
bool index_grow(struct core *core);

/* inode.c. What the end of records leaves to be closed once the lock is free. */
struct loose {
	int fds[6];
	int count;
};
static inline void loose_add(struct loose *loose, int fd)
{
	if (fd >= 0)
		loose->fds[loose->count++] = fd;
}
void loose_close(struct loose *loose);
/* Locked: ends a record if nothing keeps it, and what only it kept. 0 is no slot. */
void inode_settle(struct core *core, uint32_t slot, struct loose *loose);
/* Takes back one pin: locked, and not. */
void inode_unpin(struct core *core, uint32_t slot, struct loose *loose);
void inode_unpin_unlocked(struct core *core, uint32_t slot);
/* Locked: gives a closed record its descriptor. */
void inode_adopt(struct core *core, uint32_t slot, int fd, struct loose *loose);
/* Locked: the valid record of a nodeid, known to the guest or kept for others; NULL. */
struct inode_record *inode_at(struct core *core, uint64_t nodeid, uint32_t *slot);
/* The slot of a key's record, pinned; 0 when there is none. */
uint32_t inode_pin_key(struct core *core, const struct inode_key *key, const struct found *found);

/* Bytes that the `len` of a struct state_inode take up. */
static inline uint32_t state_padded(uint32_t len)
{
	return (len + 7) & ~7U;
}

/* nlookup.c. Before the table is opened: puts back what a worker had not finished. */
void nlookup_recover(const struct core_config *config);
/* Locked: the guest is told of an inode once more. False when the request has told of too many. */
bool nlookup_tell(struct core *core, uint32_t slot);

/* locate.c: where the inode of a pinned record, open as `fd`, will be found again. 0 with the base pinned (its slot in
 * *base) and the inode's present key, or -errno: it can't be, and keeps its descriptor. */
int locate(struct core *core, uint32_t slot, int fd, struct inode_key *key, struct locator *to, uint32_t *base);
/* The same of any open inode, whether or not it could be told from a later one of its number. `near`: a directory that it
 * may be in, a nodeid; `handle` tells no more than it has; `how`: BY_NAME, BY_HANDLE or both. */
int locate_near(struct core *core, uint64_t near, int fd, const struct inode_key *key, const struct inode_handle *handle,
		int how, struct locator *to, uint32_t *base);
/* Whether a name in a directory leads to the inode, which an open descriptor keeps from being another. */
bool name_leads(int dir_fd, const char *name, const struct inode_key *key);
/* locator.c. Locked: a locator written to and read from a closed record. -ENOSPC when its tails find no room. */
int locator_write(struct core *core, uint32_t slot, const struct locator *from);
void locator_read(struct core *core, uint32_t slot, struct locator *to);
/* Locked: whether a closed record is found where this says. A file handle is good for any place. */
bool locator_agrees(struct core *core, uint32_t slot, const struct found *found);
/* Locked: gives back what the locator of a closed record holds. The slot that has lost a reference by it, to be settled,
 * or 0. */
uint32_t locator_drop(struct core *core, uint32_t slot, struct loose *loose);
/* While a table is opened, after its records were: takes the references that closed records hold, and drops the records
 * that nothing keeps or that lead nowhere. */
void locators_load(struct core *core);

/* mounts.c: the directories through which file handles are opened. */
/* Whether the mount of `key` takes file handles; tries it with `fd`, a directory on it, unless known. */
bool mount_takes_handles(struct core *core, int fd, const struct inode_key *key);
/* Locked: the anchor of a mount, 0 when it has none. */
uint32_t mount_anchor(struct core *core, const struct inode_key *key);
/* Locked: one more, and one less, that is found through this directory. mount_use is false when there are too many
 * mounts; mount_unuse true when the directory has lost a reference. */
bool mount_use(struct core *core, uint32_t slot);
bool mount_unuse(struct core *core, uint32_t slot, struct loose *loose);
/* A descriptor for open_by_handle_at on an anchor in use, which stays the table's; or -errno. */
int mount_descriptor(struct core *core, uint32_t slot);
void mounts_open(struct core *core);
void mounts_close(struct core *core);

/* dax.c. Locked: a record ends, or all do. */
void dax_gone(struct core *core, uint32_t slot);
/* More of what is kept with an inode (core.h): it was not offered the last time, since there was no room; and it was
 * opened then. */
#define DAX_CROWDED 8
#define DAX_PLAIN 16
/* dax_room.c. Locked, both: whether an inode of this size finds room, which is then taken; and the end of a record. */
bool dax_room_take(struct core *core, uint32_t slot, uint64_t size);
void dax_room_gone(struct core *core, uint32_t slot);

/* evict.c */
int evict_open(struct core *core);
void evict_close(struct core *core);
/* Locked: a record has got a descriptor, or is about to lose it. */
void descriptor_got(struct core *core, uint32_t slot);
void descriptor_gone(struct core *core, uint32_t slot);
/* restore.c. The descriptor of a pinned inode, which is re-opened if it was closed. -errno leaves the pin. */
int inode_restore(struct core *core, uint32_t slot);

/* state_names.c: what the directories of the table call the inodes that are no directories, while no request is served.
 * NULL without memory. */
struct state_names *state_names_read(struct core *core);
void state_names_free(struct state_names *names);
/* The name that was seen of the inode in a slot, and the slot of its directory; or NULL. */
const char *state_names_of(const struct state_names *names, uint32_t slot, uint32_t *dir);

static inline void spare(struct core *core, uint32_t slot)
{
	/* Directories lead to what is in them: they stay longer. */
	uint8_t rounds = inode_record(core, slot)->type == S_IFDIR ? 2 : 1;

	if (core->inodes.private[slot].used < rounds)
		core->inodes.private[slot].used = rounds;
}

#endif
