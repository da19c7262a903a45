/* What <linux/fuse.h> of Debian 12 (protocol 7.38 as of Linux 6.1) does not have yet, with the kernel that brought it.
 * Flags are guarded: a newer system header wins. Opcodes and structs have names of their own. */
#ifndef VFSD_FUSE_NEWER_H
#define VFSD_FUSE_NEWER_H

#include <linux/fuse.h>

/* Opcodes and structs cannot be asked for with #ifdef, so these carry names of their own in every build. */
#define OP_STATX 52              /* Linux 6.6, FUSE_STATX */
#define OP_COPY_FILE_RANGE_64 53 /* Linux 6.18, FUSE_COPY_FILE_RANGE_64 */

/* INIT flags, of the 64-bit word flags2 << 32 | flags. */
#ifndef FUSE_CREATE_SUPP_GROUP /* Linux 6.3 */
#define FUSE_CREATE_SUPP_GROUP (1ULL << 34)
#endif
#ifndef FUSE_DIRECT_IO_ALLOW_MMAP /* Linux 6.6 */
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#endif
#ifndef FUSE_ALLOW_IDMAP /* Linux 6.12 */
#define FUSE_ALLOW_IDMAP (1ULL << 40)
#endif

#ifndef FUSE_PASSTHROUGH /* Linux 6.9 */
#define FUSE_PASSTHROUGH (1ULL << 37)
#define FOPEN_PASSTHROUGH (1 << 7)
#endif

/* The supplementary group of the caller, an extension after the arguments (fuse_in_header.total_extlen, Linux 6.3):
 * FUSE_EXT_GROUPS, struct fuse_supp_groups. */
#define EXT_GROUPS 32
/* Below it the type is a number of security labels: FUSE_MAX_NR_SECCTX. */
#define EXT_SECCTX_MAX 31

/* struct fuse_sx_time, struct fuse_statx, struct fuse_statx_in, struct fuse_statx_out (Linux 6.6). */
struct wire_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct wire_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0[1];
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct wire_sx_time atime;
	struct wire_sx_time btime;
	struct wire_sx_time ctime;
	struct wire_sx_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t spare2[14];
};

struct wire_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};

struct wire_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct wire_statx stat;
};

/* What Linux 6.9 put where there was padding: max_stack_depth in struct fuse_init_out, backing_id in struct
 * fuse_open_out; and struct fuse_backing_map, the argument of FUSE_DEV_IOC_BACKING_OPEN. */
#define INIT_OUT_MAX_STACK_DEPTH 36 /* bytes into struct fuse_init_out */

struct wire_passthrough_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct wire_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

#define DEV_IOC_BACKING_OPEN 0x4010e501
#define DEV_IOC_BACKING_CLOSE 0x4004e502

/* struct fuse_copy_file_range_out (Linux 6.18), the reply to COPY_FILE_RANGE_64. */
struct wire_copy_file_range_out {
	uint64_t bytes_copied;
};

#endif
