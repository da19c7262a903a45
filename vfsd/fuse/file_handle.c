/* Host file handles (open_by_handle_at(2)): a name that an inode has besides its paths. Knows no table. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Linux 6.5: a handle that only tells inodes apart, from file systems whose handles can't be opened. */
#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200
#endif

union buffer {
	struct file_handle handle;
	char room[sizeof(struct file_handle) + FILE_HANDLE_MAX];
};

/* Sixty-four bits of a handle, never 0 (the hash is FNV-1a). */
static uint64_t digest(const struct file_handle *handle)
{
	uint64_t hash = 0xcbf29ce484222325ULL ^ (uint32_t)handle->handle_type;
	uint32_t i;

	for (i = 0; i < handle->handle_bytes; i++)
		hash = (hash ^ handle->f_handle[i]) * 0x100000001b3ULL;
	return hash ? hash : 1;
}

static int encode(int fd, const char *name, int flags, union buffer *buffer)
{
	int mount_id;

	buffer->handle.handle_bytes = FILE_HANDLE_MAX;
	return name_to_handle_at(fd, name, &buffer->handle, &mount_id, flags) < 0 ? -errno : 0;
}

void file_handle_of(int fd, const char *name, struct inode_handle *to)
{
	int flags = *name ? 0 : AT_EMPTY_PATH;
	union buffer buffer;

	*to = (struct inode_handle){0};
	if (encode(fd, name, flags, &buffer) == 0) {
		to->type = buffer.handle.handle_type;
		to->len = buffer.handle.handle_bytes;
		memcpy(to->bytes, buffer.handle.f_handle, to->len);
	} else if (encode(fd, name, flags | AT_HANDLE_FID, &buffer) < 0) {
		return;
	}
	to->tag = digest(&buffer.handle);
}

int file_handle_open(int mount_fd, int type, const char *bytes, uint32_t len)
{
	union buffer buffer;
	int fd;

	if (len > FILE_HANDLE_MAX)
		return -EINVAL;
	buffer.handle.handle_bytes = len;
	buffer.handle.handle_type = type;
	memcpy(buffer.handle.f_handle, bytes, len);
	fd = open_by_handle_at(mount_fd, &buffer.handle, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int sys_check_file_handles(int root_fd, int proc_fd, int *encodes)
{
	struct core core = {.config = {.proc_fd = proc_fd}};
	struct inode_handle handle;
	int mount_fd, fd;

	file_handle_of(root_fd, "", &handle);
	*encodes = handle.len != 0;
	if (!handle.len)
		return -EOPNOTSUPP;
	mount_fd = reopen(&core, root_fd, O_RDONLY | O_DIRECTORY);
	if (mount_fd < 0)
		return mount_fd;
	fd = file_handle_open(mount_fd, handle.type, handle.bytes, handle.len);
	close(mount_fd);
	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}
