/* A device that knows no files: the ring alone, as the limit of what any daemon can do. */
#ifndef BENCH_ALONE_H
#define BENCH_ALONE_H

#include <stdint.h>

#include "virtq.h"

/* What replies to an opcode say after their header; `size` 0: whatever is in the room for them. */
struct alone_reply {
	const char *bytes;
	uint64_t size;
};

struct alone {
	struct alone_reply replies[64]; /* by opcode */
};

/* A virtq_handler; `opaque` is a struct alone. A reply has all the room there is, or what is canned for it. */
int64_t alone_serve(void *opaque, struct virtq_chain *chain);

#endif
