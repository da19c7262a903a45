/* Guest memory: a worker's view of the region table (memory.h has the rules). */
#include "memory.h"

#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "barrier.h"

#define LOG_PAGE 4096 /* bytes a bit of the dirty log stands for (vhost-user specification, "Migration") */

/* The three kinds of address a byte of guest memory has. */
enum space { GUEST, USER, HOST, SPACES };

struct mapping {
	uint64_t base[SPACES];
	uint64_t size;
	void *map; /* what munmap wants: begins at a page, at or before base[HOST] */
	size_t map_size;
};

struct memory {
	struct memory_table *table;
	uint8_t *log;
	uint64_t log_size;
	pthread_mutex_t lock; /* held to add a mapping */
	uint32_t count;       /* of mappings; stored after the one it counts. They never go before the view does. */
	const struct mapping *last; /* the mapping found last, by any thread: a hint */
	uint32_t short_of;    /* 1: a region could not be mapped for want of room in this process */
	struct mapping mappings[];
};

struct memory *memory_new(struct memory_table *table, uint8_t *log, uint64_t log_size)
{
	struct memory *memory = calloc(1, sizeof(*memory) + table->capacity * sizeof(memory->mappings[0]));

	if (!memory)
		return NULL;
	memory->table = table;
	memory->log = log;
	memory->log_size = log_size;
	pthread_mutex_init(&memory->lock, NULL);
	return memory;
}

void memory_free(struct memory *memory)
{
	if (!memory)
		return;
	for (uint32_t i = 0; i < memory->count; i++)
		munmap(memory->mappings[i].map, memory->mappings[i].map_size);
	pthread_mutex_destroy(&memory->lock);
	free(memory);
}

/* The offset and length of an mmap are multiples of this. A hugetlbfs file wants its own page size. */
static uint64_t page_size(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
		return fs.f_bsize;
	return sysconf(_SC_PAGESIZE);
}

static bool map_region(const struct memory_region *region, struct mapping *mapping)
{
	uint64_t page = page_size(region->fd);
	uint64_t lead = region->mmap_offset % page;
	size_t size = (lead + region->size + page - 1) / page * page;
	void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region->fd,
			 region->mmap_offset - lead);

	if (map == MAP_FAILED)
		return false;
	*mapping = (struct mapping){
		.base = { region->guest_addr, region->user_addr, (uintptr_t)map + lead },
		.size = region->size,
		.map = map,
		.map_size = size,
	};
	return true;
}

static bool region_holds(const struct memory_region *region, enum space space, uint64_t addr)
{
	return addr - (space == GUEST ? region->guest_addr : region->user_addr) < region->size;
}

/* Rule 3, the worker's half: marks a region used; false when it was retired meanwhile. */
static bool claim_region(struct memory_region *region)
{
	/* Pairs with memory_retire, which stores `state`, fences and loads `used`. We store `used`, fence and load
	 * `state`: at least one of the two loads sees the other's store. Either control reads used 1 and ends this
	 * worker before it lets the descriptor go, or we read RETIRED and leave the region alone. */
	write_once(&region->used, 1);
	full_fence();
	return read_once(&region->state) == MEMORY_LIVE;
}

static const struct mapping *find_mapped(const struct memory *memory, enum space space, uint64_t addr)
{
	/* Acquire: pairs with the store of `count` in map_new. */
	uint32_t count = load_acquire(&memory->count);

	for (uint32_t i = 0; i < count; i++)
		if (addr - memory->mappings[i].base[space] < memory->mappings[i].size)
			return &memory->mappings[i];
	return NULL;
}

/* Maps the live region that holds an address nobody asked for before. */
static const struct mapping *map_new(struct memory *memory, enum space space, uint64_t addr)
{
	const struct mapping *found;
	uint32_t count;

	pthread_mutex_lock(&memory->lock);
	found = find_mapped(memory, space, addr);
	/* Acquire: pairs with the store of `count` in memory_append. */
	count = load_acquire(&memory->table->count);
	for (uint32_t i = 0; !found && i < count && i < memory->table->capacity; i++) {
		struct memory_region *region = &memory->table->regions[i];
		struct mapping *mapping = &memory->mappings[memory->count];

		if (read_once(&region->state) != MEMORY_LIVE || !region_holds(region, space, addr))
			continue;
		if (!claim_region(region))
			continue;
		if (map_region(region, mapping)) {
			/* Release: pairs with find_mapped. */
			store_release(&memory->count, memory->count + 1);
			found = mapping;
		} else if (errno == ENOMEM) {
			write_once(&memory->short_of, 1);
		}
	}
	pthread_mutex_unlock(&memory->lock);
	return found;
}

static const struct mapping *find(struct memory *memory, enum space space, uint64_t addr)
{
	/* Acquire: pairs with the store at the end, so that another thread's mapping is seen whole. */
	const struct mapping *mapping = load_acquire(&memory->last);

	if (mapping && addr - mapping->base[space] < mapping->size)
		return mapping;
	mapping = find_mapped(memory, space, addr);
	if (!mapping && space != HOST)
		mapping = map_new(memory, space, addr);
	if (mapping)
		store_release(&memory->last, mapping);
	return mapping;
}

int memory_missing(const struct memory *memory)
{
	return read_once(&memory->short_of) ? -ENOMEM : -EFAULT;
}

int memory_translate(struct memory *memory, uint64_t addr, uint64_t len, struct iovec *iov, unsigned max)
{
	unsigned count = 0;

	if (len && addr + (len - 1) < addr)
		return -EFAULT;
	while (len) {
		const struct mapping *mapping = find(memory, GUEST, addr);
		uint64_t offset, span;

		if (!mapping)
			return memory_missing(memory);
		if (count == max)
			return -E2BIG;
		offset = addr - mapping->base[GUEST];
		span = mapping->size - offset < len ? mapping->size - offset : len;
		iov[count].iov_base = (void *)(uintptr_t)(mapping->base[HOST] + offset);
		iov[count].iov_len = span;
		count++;
		addr += span;
		len -= span;
	}
	return count;
}

void *memory_user(struct memory *memory, uint64_t addr, uint64_t len)
{
	const struct mapping *mapping = find(memory, USER, addr);

	if (!mapping || len > mapping->size - (addr - mapping->base[USER]))
		return NULL;
	return (void *)(uintptr_t)(mapping->base[HOST] + (addr - mapping->base[USER]));
}

void memory_dirty(struct memory *memory, uint64_t addr, uint64_t len)
{
	uint64_t last;

	if (!memory->log || !len)
		return;
	last = (addr + (len - 1)) / LOG_PAGE;
	/* A page beyond the log is none the front-end wants to hear of. */
	for (uint64_t page = addr / LOG_PAGE; page <= last && page / 8 < memory->log_size; page++)
		/* Guest memory first, then the bit: the front-end fetches and clears a bit, then copies the page. A bit
		 * set before the write could be cleared, and the page copied, without it. Set even where it is set
		 * already: reading it could run ahead of the write. */
		fetch_or(&memory->log[page / 8], (uint8_t)(1 << page % 8));
}

void memory_dirty_host(struct memory *memory, const void *addr, uint64_t len)
{
	const struct mapping *mapping;

	if (!memory->log || !len)
		return;
	mapping = find(memory, HOST, (uintptr_t)addr);
	if (mapping)
		memory_dirty(memory, mapping->base[GUEST] + ((uintptr_t)addr - mapping->base[HOST]), len);
}

static bool overlap(const struct memory_region *a, const struct memory_region *b)
{
	return a->guest_addr - b->guest_addr < b->size || b->guest_addr - a->guest_addr < a->size;
}

int memory_append(struct memory_table *table, const struct memory_region *region)
{
	struct memory_region *slot = &table->regions[table->count];

	if (!region->size || region->guest_addr + (region->size - 1) < region->guest_addr ||
	    region->user_addr + (region->size - 1) < region->user_addr || region->size > INT64_MAX ||
	    region->mmap_offset > INT64_MAX - region->size)
		return -EINVAL;
	for (uint32_t i = 0; i < table->count; i++)
		if (table->regions[i].state == MEMORY_LIVE && overlap(&table->regions[i], region))
			return -EEXIST;
	if (table->count >= table->capacity)
		return -ENOSPC;
	*slot = *region;
	slot->used = 0;
	slot->state = MEMORY_EMPTY;
	store_release(&slot->state, MEMORY_LIVE);
	/* Release: pairs with map_new, which reads the record after the count. A slot is never filled twice while a
	 * worker runs, so a record that was read stays what it was. */
	store_release(&table->count, table->count + 1);
	return 0;
}

int memory_retire(struct memory_table *table, unsigned index)
{
	struct memory_region *region = &table->regions[index];

	/* Pairs with claim_region (rule 3). */
	write_once(&region->state, MEMORY_RETIRED);
	full_fence();
	return read_once(&region->used) != 0;
}
