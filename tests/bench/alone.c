#include "alone.h"

#include <linux/fuse.h>
#include <string.h>

#define OPCODES (sizeof(((struct alone *)0)->replies) / sizeof(struct alone_reply))

/* Copies to what lies `skip` bytes behind the begin of the buffers. */
static void fill(const struct iovec *iov, uint32_t count, uint64_t skip, const char *bytes, uint64_t size)
{
	for (; count && size; iov++, count--) {
		uint64_t begin = skip < iov->iov_len ? skip : iov->iov_len;
		uint64_t part = iov->iov_len - begin < size ? iov->iov_len - begin : size;

		memcpy((char *)iov->iov_base + begin, bytes, part);
		skip -= begin;
		bytes += part;
		size -= part;
	}
}

int64_t alone_serve(void *opaque, struct virtq_chain *chain)
{
	const struct alone *alone = opaque;
	struct fuse_out_header reply = { .len = chain->out_len };
	struct fuse_in_header request;

	if (chain->out_len < sizeof(reply) || chain->in[0].iov_len < sizeof(request))
		return 0; /* a FORGET */
	memcpy(&request, chain->in[0].iov_base, sizeof(request));
	reply.unique = request.unique;
	if (request.opcode < OPCODES && alone->replies[request.opcode].size) {
		const struct alone_reply *canned = &alone->replies[request.opcode];

		reply.len = sizeof(reply) + canned->size;
		fill(chain->out, chain->out_count, sizeof(reply), canned->bytes, canned->size);
	}
	fill(chain->out, chain->out_count, 0, (const char *)&reply, sizeof(reply));
	return reply.len;
}
