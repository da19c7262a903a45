/* What a reply says, and whether it is what was asked for. */
#include <errno.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

#define NAME_AT (offsetof(struct fuse_direntplus, dirent) + FUSE_NAME_OFFSET)

int failed(struct driver_run *run, uint32_t number, uint32_t what, int64_t expected, int64_t got)
{
	run->failure = what;
	run->failed_lane = number;
	run->failed_step = run->lanes[number].at;
	run->expected = expected;
	run->got = got;
	return -EBADMSG;
}

uint64_t driver_stamp(uint64_t page, uint64_t unique)
{
	return page << 32 | (uint32_t)unique;
}

uint64_t driver_next(uint64_t first, uint64_t end, uint64_t offset, uint64_t size, uint32_t random)
{
	uint64_t blocks = (end - first) / size;
	uint64_t block = (offset - first) / size;

	if (!random || blocks < 2)
		return offset + size < end ? offset + size : first;
	/* A linear congruential generator of full period (Numerical Recipes' "quick and dirty" one). */
	blocks = 1ull << (63 - __builtin_clzll(blocks));
	return first + ((block * 1664525 + 1013904223) & (blocks - 1)) * size;
}

static char *page_of(const struct driver_queue *queue, const struct driver_step *step, uint32_t i)
{
	const struct vring_desc *table = at(queue, step->table);

	return at(queue, table[step->first_page + i].addr);
}

void reply_prepare(const struct driver_run *run, const struct driver_lane *lane, const struct driver_step *step)
{
	uint64_t first = lane->offset / DRIVER_PAGE;
	uint64_t stamp;

	if (step->data != DRIVER_READ && step->data != DRIVER_WRITE)
		return;
	for (uint32_t i = 0; i < step->size / DRIVER_PAGE; i++) {
		stamp = step->data == DRIVER_WRITE ? driver_stamp(first + i, lane->unique) : ~0ull;
		memcpy(page_of(run->requests, step, i), &stamp, sizeof(stamp));
	}
}

static int check_pages(struct driver_run *run, uint32_t number, const struct driver_step *step)
{
	uint64_t offset = run->lanes[number].offset;
	uint64_t stamp, found;
	const char *page;

	for (uint32_t i = 0; i < step->size / DRIVER_PAGE; i++, offset += DRIVER_PAGE) {
		page = page_of(run->requests, step, i);
		stamp = driver_stamp(offset / DRIVER_PAGE, 0);
		memcpy(&found, page, sizeof(found));
		if (found != stamp)
			return failed(run, number, DRIVER_DATA, stamp, found);
		if (run->content && memcmp(page, run->content + offset, DRIVER_PAGE))
			return failed(run, number, DRIVER_DATA, offset, -1);
	}
	return 0;
}

static bool is_dot(const struct fuse_dirent *entry)
{
	return entry->namelen <= 2 && entry->name[0] == '.' && entry->name[entry->namelen - 1] == '.';
}

static int by_name(const void *key, const void *element)
{
	const struct fuse_dirent *entry = key;
	const struct driver_name *name = element;
	uint32_t shorter = name->length < entry->namelen ? name->length : entry->namelen;
	int order = memcmp(entry->name, name->name, shorter);

	return order ? order : (int)entry->namelen - (int)name->length;
}

/* Keeps the nodeid of an entry that is asked for. */
static void take_name(struct driver_lane *lane, const struct driver_step *step, const struct fuse_direntplus *entry)
{
	const struct driver_name *name =
		bsearch(&entry->dirent, step->names, step->name_count, sizeof(*name), by_name);

	if (!name || !entry->entry_out.nodeid)
		return;
	lane->registers[name->reg] = entry->entry_out.nodeid;
	lane->counts[name->reg]++;
}

/* Walks a page of entries. One without a nodeid does not count: the guest would have to look it up. */
static int take_entries(struct driver_run *run, uint32_t number, const struct driver_step *step, uint32_t size)
{
	struct driver_lane *lane = &run->lanes[number];
	const char *page = page_of(run->requests, step, 0);
	const struct fuse_direntplus *entry;
	uint32_t seen = 0, whole;

	if (!size) {
		if (lane->entries != step->entries)
			return failed(run, number, DRIVER_NUMBER, step->entries, lane->entries);
		lane->offset = lane->entries = 0;
		return 0;
	}
	for (uint32_t pos = 0; pos < size; pos += whole) {
		entry = (const void *)(page + pos);
		whole = size - pos < NAME_AT ? NAME_AT : FUSE_DIRENT_ALIGN(NAME_AT + entry->dirent.namelen);
		if (whole > size - pos)
			return failed(run, number, DRIVER_LENGTH, size, pos + whole);
		lane->offset = entry->dirent.off;
		if (is_dot(&entry->dirent) || !entry->entry_out.nodeid)
			continue;
		seen++;
		if (step->name_count)
			take_name(lane, step, entry);
	}
	lane->entries += seen;
	if (lane->entries > step->entries && !run->trusting)
		return failed(run, number, DRIVER_NUMBER, step->entries, lane->entries);
	if (!step->whole)
		run->units += seen;
	return 0;
}

static int take_data(struct driver_run *run, uint32_t number, const struct driver_step *step, uint32_t size)
{
	struct driver_lane *lane = &run->lanes[number];
	int ret = 0;

	if (step->data == DRIVER_ENTRIES)
		return take_entries(run, number, step, size);
	if (step->data == DRIVER_READ && !run->trusting)
		ret = check_pages(run, number, step);
	if (step->data == DRIVER_READ || step->data == DRIVER_WRITE) {
		lane->last = lane->offset;
		lane->offset = driver_next(lane->first, lane->end, lane->offset, step->size, lane->random);
	}
	return ret;
}

static int take_registers(struct driver_run *run, uint32_t number, const struct driver_step *step)
{
	struct driver_lane *lane = &run->lanes[number];
	const struct driver_patch *patch = step->patches;
	uint64_t value;

	for (; patch < step->patches + step->patch_count; patch++) {
		if (patch->kind == DRIVER_PUT || patch->kind == DRIVER_COUNT)
			continue;
		memcpy(&value, at(run->requests, patch->addr), sizeof(value));
		if (patch->kind == DRIVER_LOOK && value)
			lane->counts[patch->reg]++;
		if (patch->kind != DRIVER_MATCH)
			lane->registers[patch->reg] = value;
		else if (value != lane->registers[patch->reg] && !run->trusting)
			return failed(run, number, DRIVER_REGISTER, lane->registers[patch->reg], value);
	}
	return 0;
}

static int check_header(struct driver_run *run, uint32_t number, const struct driver_step *step, uint32_t len)
{
	const struct driver_lane *lane = &run->lanes[number];
	const struct fuse_out_header *reply = at(run->requests, step->reply);

	if (reply->unique != lane->unique)
		return failed(run, number, DRIVER_UNIQUE, lane->unique, reply->unique);
	if (reply->len != len || len < sizeof(*reply))
		return failed(run, number, DRIVER_USED, reply->len, len);
	if (run->trusting)
		return 0;
	if (reply->error != step->error)
		return failed(run, number, DRIVER_ERROR, step->error, reply->error);
	if (step->data == DRIVER_ENTRIES ? len > step->length : len != step->length)
		return failed(run, number, DRIVER_LENGTH, step->length, len);
	return 0;
}

int reply_take(struct driver_run *run, uint32_t number, uint32_t len)
{
	const struct driver_lane *lane = &run->lanes[number];
	const struct driver_step *step = &lane->steps[lane->at];
	int ret = check_header(run, number, step, len);

	if (!ret)
		ret = take_data(run, number, step, len - sizeof(struct fuse_out_header));
	return ret ? ret : take_registers(run, number, step);
}
