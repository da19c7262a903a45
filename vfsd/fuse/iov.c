/* Bytes in and out of the guest's buffers. No byte is read twice here for the same request. */
#include "internal.h"

#include <string.h>

struct cursor {
	const struct iovec *iov;
	const struct iovec *end;
	uint64_t offset; /* into iov[0], or beyond it */
	uint64_t left;   /* bytes still wanted */
};

/* The next bytes that lie in one buffer, as many as are wanted; false at the end of either. */
static bool next_part(struct cursor *at, struct iovec *part)
{
	while (at->iov < at->end && at->offset >= at->iov->iov_len)
		at->offset -= at->iov++->iov_len;
	if (at->iov == at->end || at->left == 0)
		return false;
	part->iov_base = (char *)at->iov->iov_base + at->offset;
	part->iov_len = at->iov->iov_len - at->offset;
	if (part->iov_len > at->left)
		part->iov_len = at->left;
	at->offset += part->iov_len;
	at->left -= part->iov_len;
	return true;
}

/* Where the bytes lie if one buffer has them all, as is so of headers and arguments; else NULL. */
static void *in_one(const struct iovec *iov, uint32_t count, uint64_t offset, uint64_t len)
{
	for (; count && offset >= iov->iov_len; count--)
		offset -= iov++->iov_len;
	return count && len <= iov->iov_len - offset ? (char *)iov->iov_base + offset : NULL;
}

uint64_t iov_gather(const struct iovec *iov, uint32_t count, uint64_t offset, void *to, uint64_t len)
{
	struct cursor at = {iov, iov + count, offset, len};
	const void *from = in_one(iov, count, offset, len);
	struct iovec part;

	if (from) {
		memcpy(to, from, len);
		return len;
	}
	while (next_part(&at, &part)) {
		memcpy(to, part.iov_base, part.iov_len);
		to = (char *)to + part.iov_len;
	}
	return len - at.left;
}

uint64_t iov_scatter(const struct iovec *iov, uint32_t count, uint64_t offset, const void *from, uint64_t len)
{
	struct cursor at = {iov, iov + count, offset, len};
	void *to = in_one(iov, count, offset, len);
	struct iovec part;

	if (to) {
		memcpy(to, from, len);
		return len;
	}
	while (next_part(&at, &part)) {
		memcpy(part.iov_base, from, part.iov_len);
		from = (const char *)from + part.iov_len;
	}
	return len - at.left;
}

uint64_t iov_split(const struct iovec *iov, uint32_t count, uint64_t offset, uint64_t len, struct iovec *to,
		   uint32_t max, uint32_t *parts)
{
	struct cursor at = {iov, iov + count, offset, len};

	*parts = 0;
	while (*parts < max && next_part(&at, &to[*parts]))
		++*parts;
	return len - at.left;
}
