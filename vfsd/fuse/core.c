/* The core's life, what it records, and the system calls Python's os module lacks. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

struct core *core_new(const struct core_config *config, int *error)
{
	struct core *core = calloc(1, sizeof(*core));
	int i;

	*error = -ENOMEM;
	if (!core)
		return NULL;
	core->config = *config;
	*error = inode_table_open(core);
	if (*error < 0) {
		free(core);
		return NULL;
	}
	*error = handle_table_open(core);
	if (*error < 0) {
		inode_table_close(core);
		free(core);
		return NULL;
	}
	for (i = 0; i < POSITION_LOCKS; i++)
		pthread_mutex_init(&core->position[i], NULL);
	return core;
}

void core_free(struct core *core)
{
	int i;

	for (i = 0; i < POSITION_LOCKS; i++)
		pthread_mutex_destroy(&core->position[i]);
	handle_table_close(core);
	inode_table_close(core);
	free(core);
}

void core_reset(struct core *core)
{
	handle_table_reset(core);
	inode_table_reset(core);
}

struct collection {
	int32_t *fds;
	uint64_t max;
	uint64_t count;
};

void collect_fd(struct collection *to, int fd)
{
	if (to->count < to->max)
		to->fds[to->count] = fd;
	to->count++;
}

uint64_t core_descriptors(const struct core_config *config, int32_t *fds, uint64_t max)
{
	struct collection found = {.fds = fds, .max = max};

	inode_descriptors(config, &found);
	handle_descriptors(config, &found);
	return found.count;
}

int sys_renameat2(int olddir, const char *oldname, int newdir, const char *newname, uint32_t flags)
{
	return syscall(SYS_renameat2, olddir, oldname, newdir, newname, flags) < 0 ? -errno : 0;
}

int sys_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
	return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

int sys_syncfs(int fd)
{
	return syncfs(fd) < 0 ? -errno : 0;
}

int sys_utimens(int fd, int64_t atime, uint32_t atimensec, int64_t mtime, uint32_t mtimensec)
{
	struct timespec times[2] = {{.tv_sec = atime, .tv_nsec = atimensec}, {.tv_sec = mtime, .tv_nsec = mtimensec}};

	return utimensat(fd, "", times, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static struct wire_sx_time sx_time(const struct statx_timestamp *from)
{
	return (struct wire_sx_time){.tv_sec = from->tv_sec, .tv_nsec = from->tv_nsec};
}

int sys_statx(int fd, uint32_t flags, uint32_t mask, struct wire_statx *out)
{
	/* What the guest's kernel may ask of us (fs/fuse/dir.c, fuse_do_statx): how fresh, and which fields. */
	int allowed = AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC;
	struct statx stat;

	if (statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | (flags & allowed), mask & ~STATX__RESERVED, &stat) < 0)
		return -errno;
	*out = (struct wire_statx){
		.mask = stat.stx_mask, .blksize = stat.stx_blksize, .attributes = stat.stx_attributes,
		.nlink = stat.stx_nlink, .uid = stat.stx_uid, .gid = stat.stx_gid, .mode = stat.stx_mode,
		.ino = stat.stx_ino, .size = stat.stx_size, .blocks = stat.stx_blocks,
		.attributes_mask = stat.stx_attributes_mask,
		.atime = sx_time(&stat.stx_atime), .btime = sx_time(&stat.stx_btime),
		.ctime = sx_time(&stat.stx_ctime), .mtime = sx_time(&stat.stx_mtime),
		.rdev_major = stat.stx_rdev_major, .rdev_minor = stat.stx_rdev_minor,
		.dev_major = stat.stx_dev_major, .dev_minor = stat.stx_dev_minor,
	};
	return 0;
}
