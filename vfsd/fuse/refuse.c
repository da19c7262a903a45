/* A request that kills whoever serves it: answered EIO, and not served.
 *
 * Rule 1. Guest memory is reached by system calls only: where touching it is what kills, they fail instead.
 * Rule 2. What was done before it killed is not denied: it has the answer that it would have had.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Bytes from the start of the request into `to`, as many as can be read. */
static uint32_t read_safely(const struct virtq_chain *chain, void *to, uint32_t size)
{
	struct iovec local = {.iov_base = to, .iov_len = size};
	ssize_t n = process_vm_readv(getpid(), &local, 1, chain->in, chain->in_count, 0);

	return n < 0 ? 0 : (uint32_t)n;
}

int64_t fuse_refuse(void *opaque, struct virtq_chain *chain)
{
	struct core *core = opaque;
	struct scratch *scratch = scratch_get();
	struct fuse_request request = {.chain = chain};
	struct fuse_out_header header = {.len = sizeof(header), .error = -EIO};
	struct iovec local[] = {{.iov_base = &header, .iov_len = sizeof(header)}, {0}};
	int64_t result;
	uint64_t room;
	uint32_t size = scratch ? read_safely(chain, scratch->request, sizeof(scratch->request)) : 0;

	if (size >= sizeof(request.header)) {
		memcpy(&request.header, scratch->request, sizeof(request.header));
		request.arg = (const uint8_t *)scratch->request + sizeof(request.header);
		request.arg_len = size - sizeof(request.header);
	}
	/* FORGET has none. */
	room = chain->out_len > sizeof(header) ? chain->out_len - sizeof(header) : 0;
	request.reply_max = room < sizeof(scratch->reply) ? (uint32_t)room : sizeof(scratch->reply);
	request.reply = scratch ? (uint8_t *)scratch->reply : NULL;
	result = request.header.opcode ? once_refuse(core, &request) : -EIO;
	if (result == -EIO)
		core->config.refused(core, &request);
	if (chain->out_len < sizeof(header))
		return 0;
	header.unique = request.header.unique;
	header.error = result < 0 ? (int32_t)result : 0;
	header.len += result > 0 ? (uint32_t)result : 0;
	local[1] = (struct iovec){.iov_base = request.reply, .iov_len = header.len - sizeof(header)};
	if (process_vm_writev(getpid(), local, 2, chain->out, chain->out_count, 0) < (ssize_t)header.len)
		return -EFAULT;
	return header.len;
}
