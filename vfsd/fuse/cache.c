/* What the guest may keep of a file or directory from one open to the next, and need not ask at its close.
 *
 * Rule 1. Without FOPEN_KEEP_CACHE the guest drops at an open what it has cached of the inode (fs/fuse/file.c,
 *         fuse_finish_open). It may keep it when nothing has changed since its last open, as far as the inode's times
 *         and size can tell: the stamp.
 * Rule 2. They can tell only when every later change gives others. Two changes in one tick of the kernel's clock (10 ms
 *         at worst; ext4 may store whole seconds) give the same times; a store through a mapping gives none while its page is
 *         dirty, which is for half a minute or so (vm.dirty_expire_centisecs). So a stamp counts only for an inode that
 *         has not changed for longer than that when it is taken: settle_ns. Else the next open compares with none.
 * Rule 3. Where pages are never cleaned (tmpfs), or the clock is not ours (network file systems), times do not tell.
 *         What is not known to be good is not trusted.
 * Rule 4. The guest's copy is from after the open that took the stamp, since at that one it dropped what it had. So an
 *         equal stamp says: nothing in it is old. What changes later it finds by AUTO_INVAL_DATA, as in every mode.
 */
#include "internal.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <time.h>

#define NSEC_PER_SEC 1000000000LL

/* Not in <linux/magic.h>. */
#define BCACHEFS_MAGIC 0xca451a4e
#define ZFS_MAGIC 0x2fc12fc1

uint32_t file_system_traits(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return 0;
	switch ((uint32_t)fs.f_type) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case BCACHEFS_MAGIC:
		return TRAIT_FILES | TRAIT_DIRS | TRAIT_CLOSES | TRAIT_MAPS;
	case OVERLAYFS_SUPER_MAGIC:
	case ZFS_MAGIC:
	case EROFS_SUPER_MAGIC_V1:
	case SQUASHFS_MAGIC:
	case ISOFS_SUPER_MAGIC:
		return TRAIT_FILES | TRAIT_DIRS | TRAIT_CLOSES;
	case TMPFS_MAGIC:
		return TRAIT_DIRS | TRAIT_CLOSES | TRAIT_MAPS | TRAIT_MEMORY;
	default:
		return 0;
	}
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
	/* splitmix64's. */
	hash = (hash ^ value) + 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9ULL;
	hash = (hash ^ hash >> 27) * 0x94d049bb133111ebULL;
	return hash ^ hash >> 31;
}

/* 0 for what has changed within `settle` nanoseconds, or in the future. */
static uint64_t stamp_of(const struct statx *stat, uint64_t settle)
{
	const struct statx_timestamp *ctime = &stat->stx_ctime, *mtime = &stat->stx_mtime;
	struct timespec now;
	int64_t age;

	clock_gettime(CLOCK_REALTIME, &now);
	age = (now.tv_sec - ctime->tv_sec) * NSEC_PER_SEC + now.tv_nsec - ctime->tv_nsec;
	if (age < 0 || (uint64_t)age < settle)
		return 0;
	return mix(mix(mix(mix(mix(0, ctime->tv_sec), ctime->tv_nsec), mtime->tv_sec), mtime->tv_nsec),
		   stat->stx_size) | 1;
}

uint32_t inode_traits(struct core *core, uint64_t nodeid, int fd)
{
	struct inode_key key;

	if (inode_key(core, nodeid, &key) == 0 && key.dev == core->root_dev)
		return core->root_traits;
	return file_system_traits(fd);
}

/* A cached listing serves names only: the guest then asks for each name's attributes by itself, where READDIRPLUS would
 * have brought them (fs/fuse/readdir.c, fuse_readdir). It is worth it where there is no READDIRPLUS, or entries live. */
static bool listing_is_worth_it(const struct core *core)
{
	return !negotiated(core, FUSE_DO_READDIRPLUS) || core->config.entry_ns >= 10 * NSEC_PER_SEC;
}

static uint32_t keep_if_unchanged(struct core *core, uint64_t nodeid, int fd, bool directory)
{
	uint32_t flags = 0;
	struct statx stat;
	uint64_t stamp;

	if (stat_fd(fd, &stat) < 0)
		return 0;
	stamp = stamp_of(&stat, directory ? core->config.dir_settle_ns : core->config.file_settle_ns);
	if (inode_stamp(core, nodeid, stamp))
		flags |= FOPEN_KEEP_CACHE;
	/* The guest checks a listing by the directory's mtime: one that may change unseen is not kept at all. */
	if (directory && stamp)
		flags |= FOPEN_CACHE_DIR;
	return flags;
}

static uint32_t directory_flags(struct core *core, uint64_t nodeid, int fd)
{
	if (core->config.cache == CORE_CACHE_NEVER)
		return 0;
	if (core->config.cache != CORE_CACHE_AUTO)
		return FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR;
	if (!listing_is_worth_it(core) || !(inode_traits(core, nodeid, fd) & TRAIT_DIRS))
		return 0;
	return keep_if_unchanged(core, nodeid, fd, true);
}

/* FLUSH, sent at each close, reports what close(2) would, and lets go of POSIX locks (fs/fuse/file.c, fuse_setlk). The
 * guest ignores the flag under FUSE_WRITEBACK_CACHE. */
static bool flush_may_matter(const struct core *core, uint32_t traits)
{
	return negotiated(core, FUSE_POSIX_LOCKS | FUSE_WRITEBACK_CACHE) || !(traits & TRAIT_CLOSES);
}

/* A file that was made just now has no stamp, and gets none. */
static uint32_t file_flags(struct core *core, uint64_t nodeid, int fd, bool made)
{
	uint32_t flags = 0, traits = inode_traits(core, nodeid, fd);

	switch (core->config.cache) {
	case CORE_CACHE_NEVER:
	case CORE_CACHE_METADATA:
		flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
		break;
	case CORE_CACHE_ALWAYS:
		flags = FOPEN_KEEP_CACHE;
		break;
	default:
		if (!made && traits & TRAIT_FILES)
			flags = keep_if_unchanged(core, nodeid, fd, false);
	}
	/* A guest that maps the file has no copy to drop, and may not be told to (fs/dax.c, dax_disassociate_entry). */
	if (dax_offered(core, nodeid))
		flags |= FOPEN_KEEP_CACHE;
	return flush_may_matter(core, traits) ? flags : flags | FOPEN_NOFLUSH;
}

uint32_t open_reply_flags(struct core *core, uint64_t nodeid, int fd, uint32_t flags, int made)
{
	return flags & O_DIRECTORY ? directory_flags(core, nodeid, fd) : file_flags(core, nodeid, fd, made);
}
