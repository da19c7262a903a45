/* The security label that a guest's kernel sends with what it makes (FUSE_SECURITY_CTX; fs/fuse/dir.c,
 * get_security_context). It is set right after the op, before anybody in the guest knows the inode; what can't have its
 * label is unmade. The host's processes may see it without. Set with our privileges, since the mode of what was made may
 * forbid its owner to. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

/* SELinux's, the only security module of Linux that gives a label here. */
static const char selinux[] = "security.selinux";

/* One label: struct fuse_secctx, its name, its value. The guest's kernel sends one at most; more are virtiofsd's EINVAL too. */
static int body_read(const uint8_t *at, uint32_t size, uint32_t count, struct label *label)
{
	struct fuse_secctx head;
	const uint8_t *end;

	if (count == 0)
		return 0;
	if (count > 1 || size < sizeof(head))
		return -EINVAL;
	memcpy(&head, at, sizeof(head));
	at += sizeof(head);
	size -= sizeof(head);
	end = memchr(at, 0, size);
	if (!end || head.size == 0 || head.size > size - (end + 1 - at))
		return -EINVAL;
	if (strcmp((const char *)at, selinux) != 0)
		return -EOPNOTSUPP;
	*label = (struct label){.value = end + 1, .size = head.size};
	return 0;
}

int label_read(const struct core *core, const struct fuse_request *request, struct label *label)
{
	struct fuse_secctx_header header;
	struct extension extension;
	uint32_t left;
	int found;

	*label = (struct label){0};
	if (!negotiated(core, FUSE_SECURITY_CTX))
		return 0;
	if (negotiated(core, FUSE_CREATE_SUPP_GROUP)) {
		found = extension_find(request, 0, EXT_SECCTX_MAX, &extension);
		return found > 0 ? body_read(extension.body, extension.size, extension.type, label) : found;
	}
	/* Before Linux 6.3: what follows the names. */
	left = request->arg_len - request->names_end;
	if (left == 0)
		return 0;
	if (left < sizeof(header))
		return -EINVAL;
	memcpy(&header, request->arg + request->names_end, sizeof(header));
	if (header.size < sizeof(header) || header.size > left)
		return -EINVAL;
	return body_read(request->arg + request->names_end + sizeof(header), header.size - sizeof(header),
			 header.nr_secctx, label);
}

/* Sets it on what `path`, a descriptor's name in the current directory, stands for. */
static int set(const char *path, const char *name, uint32_t mode, const struct label *label)
{
	int error = setxattr(path, name, label->value, label->size, 0) < 0 ? -errno : 0;

	/* Only files and directories have user.* attributes; overlayfs does without on others too. */
	if (error == -EPERM && strncmp(name, "user.", 5) == 0 && !S_ISREG(mode) && !S_ISDIR(mode))
		return 0;
	/* Without privilege, to set one takes the permission to write, which the mode may not give us. */
	if (error == -EACCES && !S_ISLNK(mode) && chmod(path, (mode & 07777) | S_IWUSR) == 0) {
		error = setxattr(path, name, label->value, label->size, 0) < 0 ? -errno : 0;
		if (chmod(path, mode & 07777) < 0 && error == 0)
			error = -errno;
	}
	return error;
}

/* Removes what a request made, if its name still stands for it, and takes its entry and its handle back. */
static void unmake(struct core *core, const struct fuse_request *request, const char *name, int64_t length)
{
	const struct fuse_entry_out *entry = (const void *)request->reply;
	int dir_fd = request->dir->fd;
	struct statx stat;

	if (name && stat_name(dir_fd, name, &stat) == 0 && stat.stx_ino == entry->attr.ino)
		unlinkat(dir_fd, name, S_ISDIR(entry->attr.mode) ? AT_REMOVEDIR : 0);
	if (length > (int64_t)sizeof(*entry))
		handle_release(core, ((const struct fuse_open_out *)(entry + 1))->fh);
	inode_forget(core, entry->nodeid, 1);
}

int64_t label_new(struct core *core, const struct fuse_request *request, const struct label *label, const char *name,
		  int64_t length)
{
	const struct fuse_entry_out *entry = (const void *)request->reply;
	struct fd_name room;
	int fd, error;

	if (label->size == 0 || length <= 0 || request->found)
		return length;
	fd = inode_get(core, entry->nodeid, NULL);
	error = fd < 0 ? fd : 0;
	if (fd >= 0) {
		error = set(fd_name(fd, &room), core->config.label, entry->attr.mode, label);
		inode_put(core, entry->nodeid);
	}
	if (error == 0)
		return length;
	unmake(core, request, name, length);
	return error;
}
