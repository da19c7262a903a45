/* Locators in the arena: written, read, given back, and taken over from the worker before.
 *
 * Rule 1. A locator is complete before its record's descriptor becomes -1, and its descriptor recorded before it is
 *         given back: whatever instruction a worker dies at, the record says one or the other.
 * Rule 2. A closed record holds a reference on the directory it is found through. That one was open when the locator was
 *         written, so the chains of records found through one another have no circle.
 */
#include "inode.h"

#include <errno.h>
#include <string.h>

static void drop_tails(struct core *core, uint32_t slot)
{
	while (slot) {
		uint32_t next = tail_record(core, slot)->next;

		slots_revoke(&core->inodes, slot);
		slots_give(&core->inodes, slot);
		core->tails--;
		slot = next;
	}
}

/* The text after `done` bytes, as a chain of tails. Its first slot, or 0. */
static uint32_t write_tails(struct core *core, uint64_t owner, const struct locator *from, uint32_t done)
{
	uint32_t first = 0, end = from->len;

	/* From the last one on, so that each knows the next. */
	while (end > done) {
		uint32_t start = done + (end - done - 1) / TAIL_TEXT * TAIL_TEXT;
		uint32_t slot = slots_take(&core->inodes);
		struct tail_record *tail = tail_record(core, slot);

		if (!slot) {
			drop_tails(core, first);
			return 0;
		}
		*tail = (struct tail_record){.slot = tail->slot, .owner = owner, .next = first, .fd = -1};
		memcpy(tail->text, from->bytes + start, end - start);
		slots_publish(&core->inodes, slot);
		core->tails++;
		first = slot;
		end = start;
	}
	return first;
}

int locator_write(struct core *core, uint32_t slot, const struct locator *from)
{
	struct inode_record *record = inode_record(core, slot);
	uint32_t tail = 0;

	if (from->len > LOCATOR_INLINE) {
		tail = write_tails(core, slots_id(&core->inodes, slot), from, LOCATOR_INLINE);
		if (!tail)
			return -ENOSPC;
	}
	record->base = from->base;
	record->tag = from->tag;
	record->how = from->how;
	record->len = from->len;
	record->handle_type = from->handle_type;
	record->tail = tail;
	memcpy(record->bytes, from->bytes, from->len < LOCATOR_INLINE ? from->len : LOCATOR_INLINE);
	return 0;
}

void locator_read(struct core *core, uint32_t slot, struct locator *to)
{
	struct inode_record *record = inode_record(core, slot);
	uint32_t done = record->len < LOCATOR_INLINE ? record->len : LOCATOR_INLINE;
	uint32_t tail;

	to->base = record->base;
	to->tag = record->tag;
	to->how = record->how;
	to->len = record->len;
	to->handle_type = record->handle_type;
	memcpy(to->bytes, record->bytes, done);
	for (tail = record->tail; tail && done < to->len; tail = tail_record(core, tail)->next) {
		uint32_t part = to->len - done < TAIL_TEXT ? to->len - done : TAIL_TEXT;

		memcpy(to->bytes + done, tail_record(core, tail)->text, part);
		done += part;
	}
	to->bytes[to->len] = 0;
}

bool locator_agrees(struct core *core, uint32_t slot, const struct found *found)
{
	struct locator locator;

	if (inode_record(core, slot)->how == BY_HANDLE)
		return true;
	locator_read(core, slot, &locator);
	return locator.base == found->dir && strcmp(locator.bytes, found->name) == 0;
}

uint32_t locator_drop(struct core *core, uint32_t slot, struct loose *loose)
{
	struct inode_record *record = inode_record(core, slot);
	uint32_t base;

	drop_tails(core, record->tail);
	record->tail = 0;
	if (!inode_at(core, record->base, &base))
		return 0;
	if (record->how == BY_HANDLE)
		return mount_unuse(core, base, loose) ? base : 0;
	core->inodes.private[base].refs--;
	return base;
}

/* Whether the tails of a closed record are its own and as many as there must be. They are marked as in use. */
static bool claim_tails(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);
	uint32_t left = record->len > LOCATOR_INLINE ? record->len - LOCATOR_INLINE : 0;
	uint32_t tail = record->tail;

	for (; left; left -= left < TAIL_TEXT ? left : TAIL_TEXT) {
		struct tail_record *at = tail_record(core, tail);

		if (tail < INODE_FIRST || tail >= core->inodes.high || at->slot.valid != 1 || at->type != 0 ||
		    at->owner != slots_id(&core->inodes, slot) || core->inodes.private[tail].pins)
			return false;
		core->inodes.private[tail].pins = 1;
		tail = at->next;
	}
	return tail == 0;
}

/* Takes the references of a closed record, if its locator makes sense. Whether it leads to the inode is seen when it is
 * opened. */
static bool claim(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot), *base;
	struct inode_key key, base_key;
	uint32_t base_slot;

	if ((record->how != BY_NAME && record->how != BY_HANDLE) || record->len == 0 || record->len > LOCATOR_MAX)
		return false;
	base = inode_at(core, record->base, &base_slot);
	if (!base || base_slot == slot || base->type != S_IFDIR || !claim_tails(core, slot))
		return false;
	if (record->how == BY_NAME) {
		core->inodes.private[base_slot].refs++;
		return true;
	}
	key = record_key(record);
	base_key = record_key(base);
	return base->fd >= 0 && same_mount(&key, &base_key) && mount_use(core, base_slot);
}

/* What a record holds that makes no sense is not given back: a descriptor nobody records is swept. */
static void drop_record(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);

	slots_revoke(&core->inodes, slot);
	if (is_tail(record)) {
		core->tails--;
	} else {
		if (record->fd >= 0)
			descriptor_gone(core, slot);
		index_remove(core, slot);
	}
	slots_give(&core->inodes, slot);
}

void locators_load(struct core *core)
{
	struct loose loose = {0};
	uint32_t slot;

	for (slot = INODE_FIRST; slot < core->inodes.high; slot++) {
		struct inode_record *record = inode_record(core, slot);

		if (record->slot.valid != 1 || is_tail(record) || record->fd >= 0)
			continue;
		core->evictor.tight = true;
		if (!claim(core, slot))
			drop_record(core, slot);
	}
	for (slot = INODE_FIRST; slot < core->inodes.high; slot++) {
		struct inode_record *record = inode_record(core, slot);

		if (record->slot.valid != 1 || core->inodes.private[slot].refs || core->inodes.private[slot].pins)
			continue;
		if (is_tail(record)) {
			drop_record(core, slot);
		} else {
			inode_settle(core, slot, &loose);
			loose_close(&loose);
		}
	}
}
