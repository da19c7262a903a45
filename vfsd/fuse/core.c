/* The core's life, and what it records. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

struct core *core_new(const struct core_config *config, int *error)
{
	struct core *core = calloc(1, sizeof(*core));
	int i;

	*error = -ENOMEM;
	if (!core)
		return NULL;
	core->config = *config;
	*error = inode_table_open(core);
	if (*error < 0) {
		free(core);
		return NULL;
	}
	core->root_traits = file_system_traits(core->config.root_fd);
	core->can_map = dax_possible(core);
	core->has_fchmodat2 = has_fchmodat2();
	*error = dax_room_open(core);
	if (*error < 0) {
		inode_table_close(core);
		free(core);
		return NULL;
	}
	*error = handle_table_open(core);
	if (*error < 0) {
		dax_room_close(core);
		inode_table_close(core);
		free(core);
		return NULL;
	}
	*error = lock_table_open(core);
	if (*error < 0) {
		handle_table_close(core);
		dax_room_close(core);
		inode_table_close(core);
		free(core);
		return NULL;
	}
	for (i = 0; i < POSITIONS; i++)
		pthread_mutex_init(&core->position[i].lock, NULL);
	later_open(core);
	reader_open(core);
	return core;
}

void core_free(struct core *core)
{
	int i;

	reader_close(core);
	later_close(core);
	for (i = 0; i < POSITIONS; i++)
		pthread_mutex_destroy(&core->position[i].lock);
	lock_table_close(core);
	handle_table_close(core);
	dax_room_close(core);
	inode_table_close(core);
	free(core);
}

void core_reset(struct core *core)
{
	core->config.session->mounts++;
	lock_table_reset(core);
	handle_table_reset(core);
	inode_table_reset(core);
}

uint64_t core_descriptors(const struct core_config *config, int32_t *fds, uint64_t max)
{
	struct collection found = {.fds = fds, .max = max};

	inode_descriptors(config, &found);
	handle_descriptors(config, &found);
	lock_descriptors(config, &found);
	return found.count;
}
