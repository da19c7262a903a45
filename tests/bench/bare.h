/* The system calls that an operation can't do without, and nothing else: no ring, no FUSE, no other process.
 *
 * Inodes are O_PATH descriptors and open files are open, as in a daemon that knows them; what is made gets an O_PATH
 * descriptor of its own, since the guest is told of an inode.
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stdint.h>

/* What one lane works on. */
struct bare_place {
	int32_t directory;   /* all open O_PATH, but for `read` and `written` */
	int32_t known;       /* the file "known" in it */
	int32_t link;        /* the symbolic link "link" in it */
	int32_t read;
	int32_t written;
	uint32_t odd;        /* 1: the next attribute is the other one */
	uint64_t first;      /* the part of the file that it reads and writes, and where it is in it */
	uint64_t end;
	uint64_t offset;
	char path[16];       /* that of `known` below /proc/self/fd */
};

struct bare {
	struct bare_place *places;
	uint32_t depth;      /* places */
	uint32_t threads;    /* 1: a thread for each place, as the calls block; 0: one that goes round them */
	int32_t proc;        /* /proc/self/fd */
	int32_t many;        /* the directory that is listed, open to be read */
	uint32_t size;       /* of a READ or WRITE: whole pages, at most 256 */
	uint32_t random;     /* 1: in the order of driver_next */
	uint64_t nanoseconds;
	uint64_t elapsed;    /* nanoseconds, by the clock */
	uint64_t used;       /* and of CPU time */
	uint64_t units;
};

/* Repeats the calls of an operation, whose name is a key of WORKLOADS. 0; -EINVAL when it has none; -errno when a call
 * failed. */
int bare_run(struct bare *bare, const char *name);

#endif
