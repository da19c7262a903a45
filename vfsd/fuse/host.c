/* What we ask of the host about an inode and do to it, and the system calls Python's os module lacks. Knows no table. */
#include "internal.h"

#include <errno.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Linux 6.8: a mount's number that no later mount gets. An older kernel gives what STATX_MNT_ID asks for. */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000U
#endif
/* Linux 6.6, the same number on every machine. */
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#define STAT_MASK (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID | STATX_MNT_ID_UNIQUE)

int stat_fd(int fd, struct statx *stat)
{
	return statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STAT_MASK, stat) < 0 ? -errno : 0;
}

int stat_name(int dir_fd, const char *name, struct statx *stat)
{
	return statx(dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STAT_MASK, stat) < 0 ? -errno : 0;
}

void key_of(const struct statx *stat, struct inode_key *key)
{
	*key = (struct inode_key){
		.dev = (uint64_t)stat->stx_dev_major << 32 | stat->stx_dev_minor,
		.ino = stat->stx_ino,
		.mnt_id = stat->stx_mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE) ? stat->stx_mnt_id : 0,
		.type = stat->stx_mode & S_IFMT,
	};
	if (stat->stx_mask & STATX_BTIME)
		/* Unsigned: a file system may say anything, and any value tells inodes apart. */
		key->btime = (uint64_t)stat->stx_btime.tv_sec * 1000000000 + stat->stx_btime.tv_nsec;
}

/* The 32-bit form of a device number that FUSE carries (include/linux/kdev_t.h, new_encode_dev). */
static uint32_t encode_dev(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffU) << 12;
}

void fill_attr(struct core *core, const struct statx *stat, struct fuse_attr *attr)
{
	*attr = (struct fuse_attr){
		.ino = stat->stx_ino,
		.size = stat->stx_size,
		.blocks = stat->stx_blocks,
		.atime = stat->stx_atime.tv_sec,
		.mtime = stat->stx_mtime.tv_sec,
		.ctime = stat->stx_ctime.tv_sec,
		.atimensec = stat->stx_atime.tv_nsec,
		.mtimensec = stat->stx_mtime.tv_nsec,
		.ctimensec = stat->stx_ctime.tv_nsec,
		.mode = stat->stx_mode,
		.nlink = stat->stx_nlink,
		.uid = id_to_guest(core, CORE_UID, stat->stx_uid),
		.gid = id_to_guest(core, CORE_GID, stat->stx_gid),
		.rdev = encode_dev(stat->stx_rdev_major, stat->stx_rdev_minor),
		.blksize = stat->stx_blksize,
	};
}

const char *fd_name(int fd, struct fd_name *room)
{
	char *at = room->text + sizeof(room->text) - 1;

	*at = 0;
	do
		*--at = '0' + fd % 10;
	while (fd /= 10);
	return at;
}

bool has_xattr(int fd, const char *name)
{
	struct fd_name room;

	return getxattr(fd_name(fd, &room), name, NULL, 0) >= 0;
}

int reopen(const struct core *core, int fd, uint32_t flags)
{
	struct fd_name room;
	int opened = openat(core->config.proc_fd, fd_name(fd, &room), flags | O_CLOEXEC);

	return opened < 0 ? -errno : opened;
}

int open_beneath(int dir_fd, const char *path)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
	int fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

ssize_t path_of(const struct core *core, int fd, char *path, size_t size)
{
	struct fd_name room;
	ssize_t n = readlinkat(core->config.proc_fd, fd_name(fd, &room), path, size - 1);

	if (n < 0)
		return -errno;
	path[n] = 0;
	return n;
}

/* fchmod takes no O_PATH descriptor. */
static int set_mode_by_path(const struct core *core, int fd, uint32_t mode)
{
	struct fd_name room;

	return fchmodat(core->config.proc_fd, fd_name(fd, &room), mode, 0) < 0 ? -errno : 0;
}

bool has_fchmodat2(void)
{
	/* The system call filter of an older container says EPERM. */
	return syscall(SYS_fchmodat2, -1, "", 0, AT_EMPTY_PATH) < 0 && errno == EBADF;
}

int set_mode(const struct core *core, int fd, uint32_t mode)
{
	if (!core->has_fchmodat2)
		return set_mode_by_path(core, fd, mode);
	return syscall(SYS_fchmodat2, fd, "", mode, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

int truncate_fd(int fd, uint64_t size)
{
	struct fd_name room;

	return truncate(fd_name(fd, &room), (off_t)size) < 0 ? -errno : 0;
}

int link_fd(const struct core *core, int fd, int dir_fd, const char *name)
{
	struct fd_name room;

	/* By the descriptor's magic link: the inode itself, a symlink or a nameless file too. */
	return linkat(core->config.proc_fd, fd_name(fd, &room), dir_fd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

int sys_syncfs(int fd)
{
	return syncfs(fd) < 0 ? -errno : 0;
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
