/* Extensions: what a guest from Linux 6.3 on appends to a request that makes an inode (fuse_in_header.total_extlen). */
#include "internal.h"

#include <errno.h>
#include <string.h>

int extension_find(const struct fuse_request *request, uint32_t least, uint32_t most, struct extension *found)
{
	uint32_t left = (uint32_t)request->header.total_extlen * 8;
	const uint8_t *at;
	int result = 0;

	if (left > request->arg_len)
		return -EINVAL;
	/* What follows a name has no alignment. */
	for (at = request->arg + request->arg_len - left; left;) {
		struct fuse_ext_header header;

		memcpy(&header, at, sizeof(header));
		if (header.size < sizeof(header) || header.size % 8 || header.size > left)
			return -EINVAL;
		if (header.type >= least && header.type <= most) {
			*found = (struct extension){
				.body = at + sizeof(header), .size = header.size - sizeof(header), .type = header.type,
			};
			result = 1;
		}
		at += header.size;
		left -= header.size;
	}
	return result;
}
