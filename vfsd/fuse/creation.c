/* What a request that makes an inode brings besides the arguments its op looks at: the umask of its caller. */
#include "internal.h"

/* The host's rule (fs/posix_acl.c, posix_acl_create): the umask counts unless the directory has a default ACL, which the
 * host then applies to the mode in its place. A thread's own umask would take unshare(CLONE_FS), which the system call
 * filters of containers refuse. */
void umask_apply(const struct core *core, struct fuse_request *request, uint32_t mode_at, uint32_t umask_at)
{
	uint32_t *mode = (uint32_t *)(request->arg + mode_at);
	uint32_t umask = *(const uint32_t *)(request->arg + umask_at) & 0777;

	if (umask && negotiated(core, FUSE_DONT_MASK) && !has_xattr(request->dir->fd, "system.posix_acl_default"))
		*mode &= ~umask;
}
