/* What something takes lately that may have to wait, nanoseconds; 0: not known. Not locked: any of late will do. */
#ifndef VFSD_FUSE_USUAL_H
#define VFSD_FUSE_USUAL_H

#include <stdbool.h>

#include "barrier.h"
#include "clock.h"

static inline bool usually_within(const uint32_t *usual, uint32_t ns)
{
	uint32_t lately = read_once(usual);

	return lately && lately < ns;
}

/* By one that began then, by clock_ns(), and has just ended. It counts as `most` at most, no more than UINT32_MAX / 2. */
static inline void usual_learn(uint32_t *usual, uint64_t begun, uint32_t most)
{
	uint64_t last = clock_ns() - begun;
	uint32_t lately = read_once(usual);

	if (last > most)
		last = most;
	write_once(usual, lately ? lately / 2 + (uint32_t)last / 2 + 1 : (uint32_t)last + 1);
}

#endif
