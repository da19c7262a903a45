/* Names of inodes of which the kernel knows none (locate.c, rule 4), as the directories have them.
 *
 * Rule 1. Every directory of the table is read, once, at the first inode that is in need of it: those of many that
 *         are found so cost no more than those of one. What a guest knows lies in directories that it knows.
 * Rule 2. A name is what a directory says of an inode number. Whether it leads to the inode is seen when it is used.
 */
#include "inode.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_ROOM 4096

struct state_names {
	uint64_t *at;  /* by slot: where in `text` its name begins, 0: none was seen */
	char *text;    /* the slots of directories, a name after each, NUL-terminated */
	uint64_t len;
	uint64_t room;
};

/* False without memory. */
static bool make_text_room(struct state_names *names, uint64_t more)
{
	uint64_t room = names->room ? names->room : FIRST_ROOM;
	char *text;

	while (room < names->len + more)
		room *= 2;
	if (room == names->room)
		return true;
	text = realloc(names->text, room);
	if (!text)
		return false;
	names->text = text;
	names->room = room;
	return true;
}

static void add(struct state_names *names, uint32_t slot, uint32_t dir, const char *name)
{
	size_t size = strlen(name) + 1;

	if (names->at[slot] || !make_text_room(names, sizeof(dir) + size))
		return;
	memcpy(names->text + names->len, &dir, sizeof(dir));
	memcpy(names->text + names->len + sizeof(dir), name, size);
	names->at[slot] = names->len + sizeof(dir);
	names->len += sizeof(dir) + size;
}

/* A name in a directory, whose key it is but for the inode number. */
static void add_entry(struct core *core, struct state_names *names, uint32_t dir, struct inode_key key,
		      const struct dirent *entry)
{
	uint32_t slot;

	key.ino = entry->d_ino;
	for (slot = index_first(core, &key); slot; slot = index_next(core, slot)) {
		const struct inode_record *record = inode_record(core, slot);

		if (record->type != S_IFDIR && record->mnt_id == key.mnt_id)
			add(names, slot, dir, entry->d_name);
	}
}

/* A directory that is gone, or can't be read, has no names to tell. */
static void read_directory(struct core *core, struct state_names *names, uint32_t slot)
{
	struct inode_key key = record_key(inode_record(core, slot));
	int fd = inode_restore(core, slot);
	int opened = fd < 0 ? fd : reopen_surely(core, fd, O_RDONLY | O_DIRECTORY);
	DIR *dir = opened < 0 ? NULL : fdopendir(opened);
	const struct dirent *entry;

	if (dir) {
		while ((entry = readdir(dir)))
			if (entry->d_type != DT_DIR)
				add_entry(core, names, slot, key, entry);
		closedir(dir);
	} else if (opened >= 0) {
		close(opened);
	}
}

static bool is_directory(struct core *core, uint32_t slot)
{
	const struct inode_record *record = inode_record(core, slot);

	return record->slot.valid == 1 && record->type == S_IFDIR;
}

struct state_names *state_names_read(struct core *core)
{
	struct state_names *names = calloc(1, sizeof(*names));
	uint32_t slot, high = core->inodes.high;

	if (!names)
		return NULL;
	/* Pages nobody touches cost nothing. */
	names->at = calloc(high, sizeof(*names->at));
	if (!names->at) {
		free(names);
		return NULL;
	}
	for (slot = FUSE_ROOT_ID; slot < high; slot++) {
		if (!is_directory(core, slot))
			continue;
		core->inodes.private[slot].pins++;
		read_directory(core, names, slot);
		inode_unpin_unlocked(core, slot);
	}
	return names;
}

void state_names_free(struct state_names *names)
{
	if (!names)
		return;
	free(names->at);
	free(names->text);
	free(names);
}

const char *state_names_of(const struct state_names *names, uint32_t slot, uint32_t *dir)
{
	const char *name;

	if (!names->at[slot])
		return NULL;
	name = names->text + names->at[slot];
	memcpy(dir, name - sizeof(*dir), sizeof(*dir));
	return name;
}
