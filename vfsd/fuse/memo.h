/* What a request in flight has done so far: one record of an arena for each head of each ring, for the worker that finds
 * the request there after another one's death. once.c says what is done with it. Read by both sides. */
#ifndef VFSD_FUSE_MEMO_H
#define VFSD_FUSE_MEMO_H

#include <stdint.h>

/* Rows of once.c: what is kept of a request. */
#define ONCE_AGAIN 0 /* nothing: it is served again */
#define ONCE_UNDO 1  /* what it gave the guest, which is taken back */
#define ONCE_COUNT 2 /* how much of it was done */
#define ONCE_KEEP 3  /* its outcome */

/* Inodes of which a request may tell: here, and in the page that each record has besides. */
#define MEMO_TOLD 2
#define MEMO_PAGE 1024
/* Bytes: the longest reply that is kept, an entry and an open file. */
#define MEMO_REPLY 144

/* What a name led to. `type` 0: nothing. */
struct memo_name {
	uint64_t dev;
	uint64_t ino;
	uint64_t mnt_id;
	int64_t btime;
	uint32_t type;
	uint32_t reserved;
};

struct memo {
	uint64_t unique;          /* whose this is, with the two that follow; stored last. 0: nobody's */
	uint32_t opcode;
	uint32_t mount;           /* core_session.mounts */
	uint32_t done;            /* `result` and `reply` hold: the request needs only be answered */
	uint32_t steps;           /* inodes told of, or forgets done: always as many as the inode table counts (nlookup.c) */
	uint64_t fh;              /* the handle that was given, 0: none; or it was about to be */
	uint32_t told[2];         /* slots of the inodes told of */
	int64_t fact;             /* what an op itself has seen before it did anything, once has_fact is 1 */
	uint32_t has_fact;
	uint32_t looked;          /* `name` holds */
	uint32_t priv[2];         /* priv.c: what a modification does to set-id bits, 0: nothing */
	struct memo_name name;    /* the first that the request brings, before anything was done */
	uint64_t reserved[5];
	int64_t result;           /* length of the reply, or -errno */
	uint8_t reply[144];
	uint64_t padding[3];      /* whole cache lines; all that most requests need is in the first */
};

#endif
