/* Ids that have another number on the other side (--translate-uid, --translate-gid, --owner). Where no rule is given
 * core_config.ids is NULL, and nothing here costs more than that look.
 *
 * Rule 1. What is no id, (uid_t)-1, is in no range and stays what it is: callers see to it first.
 */
#include "internal.h"

#include <errno.h>

static const struct core_id_range *find(const struct core_id_map *map, uint32_t id)
{
	uint32_t from = 0, to = map->count;

	while (from < to) {
		uint32_t middle = from + (to - from) / 2;
		const struct core_id_range *range = &map->ranges[middle];

		if (id < range->first)
			to = middle;
		else if (id > range->last)
			from = middle + 1;
		else
			return range;
	}
	return NULL;
}

/* The id on the other side, or -EPERM. */
static int64_t translate(const struct core_id_map *map, uint32_t id)
{
	const struct core_id_range *range = find(map, id);

	if (!range)
		return id;
	switch (range->how) {
	case CORE_ID_SHIFT:
		return range->to + (id - range->first);
	case CORE_ID_SQUASH:
		return range->to;
	default:
		return -EPERM;
	}
}

int64_t id_to_host(struct core *core, uint32_t kind, uint32_t id)
{
	return core->config.ids ? translate(&core->config.ids->to_host[kind], id) : id;
}

uint32_t id_to_guest(struct core *core, uint32_t kind, uint32_t id)
{
	return core->config.ids ? (uint32_t)translate(&core->config.ids->to_guest[kind], id) : id;
}

int64_t id_to_set(struct core *core, uint32_t kind, uint32_t id)
{
	if (id == UINT32_MAX)
		return -EINVAL;
	if (!core->config.ids || !core->config.ids->one_owner)
		return id_to_host(core, kind, id);
	/* Every host id is shown as this one, so any will do to ask. */
	return id == id_to_guest(core, kind, 0) ? (int64_t)UINT32_MAX : -EPERM;
}

int ids_of_caller(struct core *core, uint32_t *uid, uint32_t *gid, uint32_t *groups, uint32_t count)
{
	int64_t user = id_to_host(core, CORE_UID, *uid), group = id_to_host(core, CORE_GID, *gid);
	uint32_t i;

	if (user < 0 || group < 0)
		return -EPERM;
	*uid = (uint32_t)user;
	*gid = (uint32_t)group;
	for (i = 0; i < count; i++) {
		group = id_to_host(core, CORE_GID, groups[i]);
		if (group < 0)
			return -EPERM;
		groups[i] = (uint32_t)group;
	}
	return 0;
}
