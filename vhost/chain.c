/* Descriptor chains to iovecs (virtio 1.3, sections 2.7.4 and 2.7.5).
 *
 * Rule 1. Every descriptor is copied once; what is checked is the copy.
 * Rule 2. The walk ends: no table is followed for more steps than it has descriptors, nor than VIRTQ_MAX_CHAIN.
 * Rule 3. A buffer outside guest memory is the request's fault and not the ring's: a guest may send what lies in another
 *         device's shared memory, and its driver is none the wiser.
 */
#include <errno.h>

#include "barrier.h"
#include "queue.h"

/* Buffers of each kind that are fetched ahead: headers, arguments and a first page. Of many pages none is in a cache, and
 * where they lie takes as long to find out as to read. */
#define FETCHED 3

/* A descriptor table: the ring's own, or an indirect one. `host` is NULL when it does not lie in one piece here. */
struct table {
	const struct vring_desc *host;
	uint64_t addr;
	uint32_t count;
};

/* Descriptor `index` of a table, wherever its bytes lie. */
static int table_read(struct virtq *queue, const struct table *table, uint32_t index, struct vring_desc *desc)
{
	struct iovec iov[sizeof(*desc)];
	char *to = (char *)desc;
	int n;

	if (table->host) {
		copy_once(desc, (const char *)table->host + index * sizeof(*desc), sizeof(*desc));
		return 0;
	}
	n = memory_translate(queue->config.memory, table->addr + index * sizeof(*desc), sizeof(*desc), iov,
			     sizeof(*desc));
	for (int i = 0; i < n; i++) {
		copy_once(to, iov[i].iov_base, iov[i].iov_len);
		to += iov[i].iov_len;
	}
	return n < 0 ? n : 0;
}

/* The table an INDIRECT descriptor refers to; its WRITE flag means nothing (2.7.5.3.2). `iov` is room to work in. */
static int table_indirect(struct virtq *queue, const struct vring_desc *desc, struct iovec *iov, unsigned max,
			  struct table *table)
{
	int n;

	if (!queue->config.indirect || desc->flags & VRING_DESC_F_NEXT)
		return -EPROTO;
	if (!desc->len || desc->len % sizeof(*desc))
		return -EPROTO;
	n = memory_translate(queue->config.memory, desc->addr, desc->len, iov, max);
	if (n < 0)
		return n;
	*table = (struct table){
		.host = n == 1 ? iov->iov_base : NULL,
		.addr = desc->addr,
		.count = desc->len / sizeof(*desc),
	};
	return 0;
}

/* Adds one buffer. All that the device reads comes before all that it writes (2.7.4.2). */
static int chain_add(struct virtq *queue, struct virtq_chain *chain, const struct vring_desc *desc)
{
	uint32_t count = chain->in_count + chain->out_count;
	bool write = desc->flags & VRING_DESC_F_WRITE;
	uint32_t side = write ? VIRTQ_FAULT_OUT : VIRTQ_FAULT_IN;
	int n;

	if (!write && chain->out)
		return -EPROTO;
	if (write && !chain->out)
		chain->out = chain->in + chain->in_count;
	if (chain->fault & side)
		return 0;
	n = memory_translate(queue->config.memory, desc->addr, desc->len, chain->in + count, VIRTQ_MAX_CHAIN - count);
	if (n == -EFAULT)
		chain->fault |= side;
	if (n <= 0)
		return n == -EFAULT ? 0 : n;
	/* The driver's core has it in its cache: it comes here while the rest of the chain is read, and served. */
	if (write) {
		if (chain->out_count < FETCHED)
			__builtin_prefetch(chain->out[chain->out_count].iov_base, 1);
		chain->out_count += n;
		chain->out_len += desc->len;
	} else {
		if (chain->in_count < FETCHED)
			__builtin_prefetch(chain->in[chain->in_count].iov_base);
		chain->in_count += n;
		chain->in_len += desc->len;
	}
	return 0;
}

int chain_read(struct virtq *queue, uint16_t head)
{
	struct slot *slot = &queue->slots[head];
	struct virtq_chain *chain = &slot->chain;
	uint32_t used;
	struct table table = { queue->desc, 0, queue->config.num };
	struct vring_desc desc = { .next = head, .flags = VRING_DESC_F_NEXT };
	uint32_t steps = 0;
	bool indirect = false;
	int err;

	*chain = (struct virtq_chain){ .queue = queue, .head = head, .in = slot->iov };
	if (queue->config.memos)
		chain->memo = (char *)queue->config.memos + (size_t)head * queue->config.memo_size;
	while (desc.flags & VRING_DESC_F_NEXT) {
		if (desc.next >= table.count || ++steps > table.count || steps > VIRTQ_MAX_CHAIN)
			return -EPROTO;
		err = table_read(queue, &table, desc.next, &desc);
		if (err)
			return err;
		if (!(desc.flags & VRING_DESC_F_INDIRECT)) {
			err = chain_add(queue, chain, &desc);
		} else if (indirect) {
			err = -EPROTO;
		} else {
			used = chain->in_count + chain->out_count;
			err = table_indirect(queue, &desc, slot->iov + used, VIRTQ_MAX_CHAIN - used, &table);
			indirect = true;
			steps = 0;
			desc = (struct vring_desc){ .next = 0, .flags = VRING_DESC_F_NEXT };
		}
		if (err)
			return err;
	}
	if (!chain->out)
		chain->out = chain->in + chain->in_count;
	return 0;
}

int unreadable(struct virtq *queue, int err)
{
	return err == -ENOMEM ? err : broken(queue, err);
}
