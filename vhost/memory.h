/* Guest memory: the table of regions, and translation of the two kinds of address the front-end speaks in.
 *
 * Rule 1. The table lies in an arena (a memfd mapped shared): the control process appends and retires regions, a worker
 *         reads them and sets their `used` mark. It holds no pointers. Nothing else of a region ever changes.
 * Rule 2. `struct memory` is a worker's private view: a region is mapped at its first use and stays mapped for the
 *         worker's life, so a translated pointer needs no pin.
 * Rule 3. Control retires a region without a restart only while `used` is 0: it stores `state`, fences, reads `used`; a
 *         worker stores `used`, fences, reads `state` again before it maps. One of the two always sees the other.
 */
#ifndef VHOST_MEMORY_H
#define VHOST_MEMORY_H

#include <stdint.h>
#include <sys/uio.h>

#define MEMORY_EMPTY 0
#define MEMORY_LIVE 1
#define MEMORY_RETIRED 2

/* One record of the arena. `state` is written last when a region appears and first when it goes. */
struct memory_region {
	uint64_t guest_addr;  /* guest physical address */
	uint64_t user_addr;   /* the front-end's virtual address: what SET_VRING_ADDR speaks in */
	uint64_t size;        /* bytes */
	uint64_t mmap_offset; /* into fd; need not be page aligned */
	int32_t fd;
	uint32_t state;
	uint32_t used;        /* set by a worker before it first maps the region */
	uint32_t reserved;
};

struct memory_table {
	uint32_t capacity;    /* records that fit in the arena */
	uint32_t count;       /* records ever appended; stored after the record it counts */
	struct memory_region regions[];
};

struct memory;

/* A view of `table`. `log` is the dirty log (one bit per 4096-byte page of guest physical memory, vhost-user
 * specification, "Migration"), or NULL. NULL when out of memory. */
struct memory *memory_new(struct memory_table *table, uint8_t *log, uint64_t log_size);
void memory_free(struct memory *memory);

/* Why an address was not found: -EFAULT, it is in no region; -ENOMEM, this process had no room to map that. */
int memory_missing(const struct memory *memory);

/* Guest physical [addr, addr+len) as at most `max` iovecs (a range may cross adjacent regions). Returns their number;
 * -EFAULT when the range wraps, memory_missing() when any byte is outside the table, -E2BIG when `max` is too small. len 0
 * gives 0. */
int memory_translate(struct memory *memory, uint64_t addr, uint64_t len, struct iovec *iov, unsigned max);

/* A ring part at front-end virtual [addr, addr+len), which must lie in one region. NULL when it does not. */
void *memory_user(struct memory *memory, uint64_t addr, uint64_t len);

/* Marks guest physical, or mapped host, [addr, addr+len) dirty. No-op without a log. */
void memory_dirty(struct memory *memory, uint64_t addr, uint64_t len);
void memory_dirty_host(struct memory *memory, const void *addr, uint64_t len);

/* For control, on the table it owns. memory_append adds a live region: 0, -EINVAL when it is empty or wraps, -EEXIST
 * when it overlaps a live one, -ENOSPC when the table is full. memory_retire takes one away, and returns 1 when a worker
 * has used it (that worker must end), else 0. */
int memory_append(struct memory_table *table, const struct memory_region *region);
int memory_retire(struct memory_table *table, unsigned index);

#endif
