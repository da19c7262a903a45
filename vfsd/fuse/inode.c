/* The inode table: which host inode a nodeid stands for.
 *
 * Rule 1. A nodeid stands for one host inode for its whole life. While its record has a descriptor (O_PATH), that keeps
 *         the inode, and so its inode number, from being used again. While it has none (evict.c), a digest of the file
 *         handle tells it from a later inode of the same number. Birth time and type are part of the key besides.
 * Rule 2. `nlookup` is the guest's count and untrusted: it saturates. A record is kept by references (the guest's
 *         count is one, each record that is found through it another) and by pins. The last of both ends it, so a FORGET
 *         cannot close a descriptor another thread works on.
 * Rule 3. The hash index is private and derived.
 * Rule 4. The root is slot 1 with generation 0 (FUSE_ROOT_ID). Its descriptor is the configuration's; it never goes.
 */
#include "inode.h"

#include <errno.h>
#include <unistd.h>

void loose_close(struct loose *loose)
{
	while (loose->count)
		close(loose->fds[--loose->count]);
}

/* Ends a record. Returns the slot that has lost a reference by it, or 0. */
static uint32_t end(struct core *core, uint32_t slot, struct loose *loose)
{
	uint32_t base = 0;

	slots_revoke(&core->inodes, slot);
	dax_gone(core, slot);
	index_remove(core, slot);
	if (is_closed(core, slot)) {
		base = locator_drop(core, slot, loose);
	} else {
		descriptor_gone(core, slot);
		loose_add(loose, inode_record(core, slot)->fd);
	}
	slots_give(&core->inodes, slot);
	return base;
}

void inode_settle(struct core *core, uint32_t slot, struct loose *loose)
{
	while (slot && !core->inodes.private[slot].pins && !core->inodes.private[slot].refs)
		slot = end(core, slot, loose);
}

void inode_unpin(struct core *core, uint32_t slot, struct loose *loose)
{
	core->inodes.private[slot].pins--;
	inode_settle(core, slot, loose);
}

void inode_unpin_unlocked(struct core *core, uint32_t slot)
{
	struct loose loose = {0};

	pthread_mutex_lock(&core->inodes.lock);
	inode_unpin(core, slot, &loose);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
}

struct inode_record *inode_at(struct core *core, uint64_t nodeid, uint32_t *slot)
{
	struct inode_record *record = (struct inode_record *)slots_find(&core->inodes, nodeid, slot);

	return record && !is_tail(record) ? record : NULL;
}

/* A record the guest may name: it has looked it up and not forgotten it. */
static struct inode_record *known(struct core *core, uint64_t nodeid, uint32_t *slot)
{
	struct inode_record *record = inode_at(core, nodeid, slot);

	return record && record->nlookup ? record : NULL;
}

int inode_get_key(struct core *core, uint64_t nodeid, struct inode_key *key)
{
	struct inode_record *record;
	int fd = -1;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	record = known(core, nodeid, &slot);
	if (record) {
		core->inodes.private[slot].pins++;
		spare(core, slot);
		*key = record_key(record);
		fd = record->fd;
	}
	pthread_mutex_unlock(&core->inodes.lock);
	if (!record)
		return -ESTALE;
	if (fd < 0) {
		fd = inode_restore(core, slot);
		if (fd < 0)
			inode_unpin_unlocked(core, slot);
	}
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

int inode_key(struct core *core, uint64_t nodeid, struct inode_key *key)
{
	struct inode_record *record;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	record = known(core, nodeid, &slot);
	if (record)
		*key = record_key(record);
	pthread_mutex_unlock(&core->inodes.lock);
	return record ? 0 : -ESTALE;
}

void inode_put(struct core *core, uint64_t nodeid)
{
	struct loose loose = {0};
	uint32_t slot;

	/* A pinned record is valid, so it is found by any id that inode_get took. */
	pthread_mutex_lock(&core->inodes.lock);
	if (inode_at(core, nodeid, &slot) && core->inodes.private[slot].pins)
		inode_unpin(core, slot, &loose);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
}

/* The guest is told of an inode once more, found in `dir`. The nodeid, or 0 when a request can't tell of more. */
static uint64_t tell(struct core *core, uint32_t slot, uint64_t dir)
{
	struct inode_record *record = inode_record(core, slot);

	if (!nlookup_tell(core, slot))
		return 0;
	if (dir && record->fd >= 0)
		record->base = dir;
	return slots_id(&core->inodes, slot);
}

/* The slot of a key, or 0. Locked. Of an inode without a descriptor the number may have been used again, which only the
 * tag of its file handle tells; without one (NULL) *doubt says whether it would matter. */
static uint32_t find(struct core *core, const struct inode_key *key, const uint64_t *tag, bool *doubt)
{
	uint32_t slot;

	*doubt = false;
	for (slot = index_first(core, key); slot; slot = index_next(core, slot)) {
		struct inode_record *record = inode_record(core, slot);
		struct inode_key known = record_key(record);

		if (!same_key(&known, key))
			continue;
		if (record->fd >= 0 || (tag && *tag == record->tag))
			return slot;
		*doubt = !tag;
	}
	return 0;
}

/* The same, which asks for the tag where it matters. It lets go of the lock for that, so what is found is looked for
 * again. By a name the tag may come from another inode than the key, which then matches nothing. */
static uint32_t find_surely(struct core *core, const struct inode_key *key, const struct found *found)
{
	struct inode_handle handle;
	uint32_t slot;
	bool doubt;

	slot = find(core, key, NULL, &doubt);
	if (slot || !doubt)
		return slot;
	pthread_mutex_unlock(&core->inodes.lock);
	file_handle_of(found->fd, found->name, &handle);
	pthread_mutex_lock(&core->inodes.lock);
	return find(core, key, &handle.tag, &doubt);
}

uint32_t inode_pin_key(struct core *core, const struct inode_key *key, const struct found *found)
{
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	slot = find_surely(core, key, found);
	if (slot)
		core->inodes.private[slot].pins++;
	pthread_mutex_unlock(&core->inodes.lock);
	return slot;
}

static uint32_t find_open_place(struct core *core, const struct inode_key *key)
{
	uint32_t slot;

	for (slot = index_first(core, key); slot; slot = index_next(core, slot)) {
		struct inode_key known = record_key(inode_record(core, slot));

		if (!is_closed(core, slot) && same_place(&known, key))
			return slot;
	}
	return 0;
}

/* A record that differs in the birth time only is another inode, or the same on overlayfs, where a copy-up changes it.
 * Its own descriptor knows: the record follows. Called, and returns, with the lock. */
static void follow_birth(struct core *core, uint32_t slot, const struct inode_key *key, struct loose *loose)
{
	struct inode_record *record = inode_record(core, slot);
	struct inode_key now = {0};
	struct statx stat;

	core->inodes.private[slot].pins++;
	pthread_mutex_unlock(&core->inodes.lock);
	if (stat_fd(record->fd, &stat) == 0)
		key_of(&stat, &now);
	pthread_mutex_lock(&core->inodes.lock);
	if (same_key(&now, key))
		record->btime = key->btime;
	inode_unpin(core, slot, loose);
}

/* find_surely, also of what was born again. */
static uint32_t find_reborn(struct core *core, const struct inode_key *key, const struct found *found,
			    struct loose *loose)
{
	uint32_t slot = find_surely(core, key, found);
	uint32_t open = slot ? 0 : find_open_place(core, key);

	if (!open)
		return slot;
	follow_birth(core, open, key, loose);
	return find_surely(core, key, found);
}

uint64_t inode_find(struct core *core, const struct inode_key *key, const struct found *found)
{
	struct loose loose = {0};
	uint64_t nodeid = 0;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	slot = find_reborn(core, key, found, &loose);
	/* A closed one would not be found where it is not known to be: it gets a descriptor, by inode_add. */
	if (slot && (!is_closed(core, slot) || locator_agrees(core, slot, found)))
		nodeid = tell(core, slot, found->dir);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
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
	*record = (struct inode_record){
		.slot = record->slot, .dev = key->dev, .ino = key->ino, .mnt_id = key->mnt_id, .btime = key->btime,
		.fd = fd, .type = key->type,
	};
	index_insert(core, slot);
	slots_publish(&core->inodes, slot);
	descriptor_got(core, slot);
	index_grow(core);
	return slot;
}

void inode_adopt(struct core *core, uint32_t slot, int fd, struct loose *loose)
{
	inode_record(core, slot)->fd = fd;
	ordered();
	descriptor_got(core, slot);
	inode_settle(core, locator_drop(core, slot, loose), loose);
}

int inode_add(struct core *core, const struct inode_key *key, int fd, uint64_t dir, uint64_t *nodeid)
{
	struct found found = {.fd = fd, .name = ""};
	struct loose loose = {0};
	bool known;
	uint32_t slot;

	pthread_mutex_lock(&core->inodes.lock);
	/* Not everybody has asked inode_find; another thread may have added it since; and a name was not sure to lead to a
	 * closed one. */
	slot = find_reborn(core, key, &found, &loose);
	known = slot != 0;
	if (!slot)
		slot = insert(core, key, fd);
	else if (is_closed(core, slot))
		inode_adopt(core, slot, fd, &loose);
	*nodeid = slot ? tell(core, slot, dir) : 0;
	if (slot && !*nodeid)
		inode_settle(core, slot, &loose);
	if (!slot || inode_record(core, slot)->fd != fd)
		loose_add(&loose, fd);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
	if (!*nodeid)
		return -ENOMEM;
	return known ? ENTRY_KNOWN : 0;
}

bool inode_is_about(struct core *core, uint64_t dev, uint64_t ino)
{
	const struct inode_key key = {.dev = dev, .ino = ino};
	bool found;

	pthread_mutex_lock(&core->inodes.lock);
	found = index_first(core, &key) != 0;
	pthread_mutex_unlock(&core->inodes.lock);
	return found;
}
