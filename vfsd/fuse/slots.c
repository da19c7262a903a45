#include "slots.h"

#include <errno.h>
#include <sys/mman.h>

static uint32_t slots_capacity(uint64_t size, uint32_t record_size)
{
	uint64_t capacity = size / record_size;

	return capacity > UINT32_MAX ? UINT32_MAX : (uint32_t)capacity;
}

static void slots_rebuild(struct slots *slots, uint32_t first, slots_check check, void *opaque)
{
	uint32_t slot;

	for (slot = slots->high; slot-- > first;) {
		struct slot_record *record = slots_at(slots, slot);

		if (record->generation > slots->generation)
			slots->generation = record->generation;
		if (record->valid == 1 && check(opaque, record, slot)) {
			slots->count++;
			continue;
		}
		record->valid = 0;
		slots_give(slots, slot);
	}
}

int slots_open(struct slots *slots, void *arena, uint64_t size, uint32_t record_size, uint32_t first,
	       slots_check check, void *opaque)
{
	struct slots_header *header = arena;

	*slots = (struct slots){.header = header, .record_size = record_size};
	slots->capacity = slots_capacity(size, record_size);
	if (slots->capacity <= first || record_size < sizeof(*header))
		return -EINVAL;
	if (header->magic == 0) {
		header->record_size = record_size;
		header->generation = 0;
		header->high = first;
		ordered();
		header->magic = SLOTS_MAGIC;
	}
	if (header->magic != SLOTS_MAGIC || header->record_size != record_size)
		return -EINVAL;
	slots->high = header->high;
	slots->generation = header->generation;
	if (slots->high < first || slots->high > slots->capacity)
		return -EINVAL;
	slots->private = mmap(NULL, (size_t)slots->capacity * sizeof(*slots->private), PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (slots->private == MAP_FAILED)
		return -ENOMEM;
	pthread_mutex_init(&slots->lock, NULL);
	slots_rebuild(slots, first, check, opaque);
	return 0;
}

void slots_close(struct slots *slots)
{
	pthread_mutex_destroy(&slots->lock);
	munmap(slots->private, (size_t)slots->capacity * sizeof(*slots->private));
}

struct slot_record *slots_find(const struct slots *slots, uint64_t id, uint32_t *slot)
{
	uint32_t index = (uint32_t)id;
	struct slot_record *record;

	if (index == 0 || index >= slots->high)
		return NULL;
	record = slots_at(slots, index);
	if (record->valid != 1 || record->generation != id >> 32)
		return NULL;
	*slot = index;
	return record;
}

uint64_t slots_id(const struct slots *slots, uint32_t slot)
{
	return (uint64_t)slots_at(slots, slot)->generation << 32 | slot;
}

uint32_t slots_take(struct slots *slots)
{
	uint32_t slot = slots->free;

	if (slot) {
		slots->free = slots->private[slot].next;
	} else if (slots->high < slots->capacity) {
		slot = slots->high++;
		slots->header->high = slots->high;
	} else {
		return 0;
	}
	/* Generation 0 is the root's alone. */
	if (++slots->generation == 0)
		slots->generation = 1;
	slots->header->generation = slots->generation;
	slots->private[slot] = (struct slot_private){0};
	*slots_at(slots, slot) = (struct slot_record){.generation = slots->generation};
	return slot;
}

bool slots_reserve(struct slots *slots, uint32_t high, uint32_t generation)
{
	if (slots->count || high < slots->high || high > slots->capacity)
		return false;
	slots->free = 0;
	slots->high = slots->header->high = high;
	slots->generation = slots->header->generation = generation;
	return true;
}

void slots_publish(struct slots *slots, uint32_t slot)
{
	ordered();
	slots_at(slots, slot)->valid = 1;
	ordered();
	slots->count++;
}

void slots_revoke(struct slots *slots, uint32_t slot)
{
	ordered();
	slots_at(slots, slot)->valid = 0;
	ordered();
	slots->count--;
}

void slots_give(struct slots *slots, uint32_t slot)
{
	slots->private[slot].next = slots->free;
	slots->free = slot;
}

void slots_walk(const void *arena, uint64_t size, uint32_t record_size, slots_visit visit, void *opaque)
{
	const struct slots_header *header = arena;
	uint32_t capacity = slots_capacity(size, record_size);
	uint32_t slot;

	if (capacity == 0 || header->magic != SLOTS_MAGIC || header->record_size != record_size)
		return;
	for (slot = 1; slot < header->high && slot < capacity; slot++) {
		const struct slot_record *record =
			(const void *)((const char *)arena + (uint64_t)slot * record_size);

		if (record->valid == 1)
			visit(opaque, record, slot);
	}
}
