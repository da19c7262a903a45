/* What a core is made of, as Python fills it in: settings, arenas, and what the mount negotiated. Read by both sides. */
#ifndef VFSD_FUSE_CONFIG_H
#define VFSD_FUSE_CONFIG_H

#include <stdint.h>

#include "memo.h"
#include "virtq.h"

struct core;
struct fuse_request;

/* What a mount negotiated: one record of an arena, written by INIT and DESTROY (vfsd/ops/session.py). */
struct core_session {
	uint32_t mounted;       /* stored last by INIT, cleared first by DESTROY */
	uint32_t minor;         /* the smaller of the guest's and ours */
	uint64_t flags;         /* agreed, flags2 << 32 | flags */
	uint32_t max_write;     /* bytes */
	uint32_t max_pages;
	uint64_t thrashed[128]; /* digests of inodes that are not to be mapped, whatever nodeid they get (dax.c); 0: none */
	uint64_t served[64];    /* requests answered or deferred, by opcode, since the front-end came */
	uint32_t mounts;        /* counts core_reset, after which requests are numbered anew */
	uint32_t aside;         /* counts requests that were served aside, since they would have waited for a disk */
};

/* Bytes of a record of the arenas. */
#define INODE_RECORD 128
#define HANDLE_RECORD 32

#define CORE_CACHE_NEVER 0
#define CORE_CACHE_METADATA 1
#define CORE_CACHE_AUTO 2
#define CORE_CACHE_ALWAYS 3

#define CORE_READONLY 1          /* every modifying op is answered EROFS */
#define CORE_PRIVILEGED 2        /* may switch to the guest caller's identity */
#define CORE_ALLOW_DIRECT_IO 4   /* pass O_DIRECT on to the host */
#define CORE_PRESERVE_NOATIME 8  /* pass O_NOATIME on to the host */
#define CORE_ANNOUNCE_SUBMOUNTS 16
#define CORE_FILE_HANDLES 32     /* closed inodes are opened by file handle where the host can */
#define CORE_FILE_HANDLES_ONLY 64 /* and never by name */
#define CORE_KEEPS_SET_ID 128    /* the host leaves suid and sgid of what this process writes (vfsd/facts.py) */
#define CORE_DAX_ALWAYS 256      /* every file is offered for the DAX window, whatever its size */
#define CORE_READS_WAIT 512      /* the host's kernel can't be asked for what is in its page cache alone */

/* Whose ids: the index of the arrays below. */
#define CORE_UID 0
#define CORE_GID 1

#define CORE_ID_SHIFT 0  /* each id has a counterpart of its own */
#define CORE_ID_SQUASH 1 /* all have the same */
#define CORE_ID_FORBID 2 /* none has: EPERM; in to_host only */

/* Ids [first, last] of one side, and what they are on the other. */
struct core_id_range {
	uint32_t first;
	uint32_t last;
	uint32_t to;            /* the counterpart of `first` */
	uint32_t how;           /* CORE_ID_* */
};

/* Sorted, and without overlap. An id in no range is the same on both sides. */
struct core_id_map {
	const struct core_id_range *ranges;
	uint32_t count;
};

/* Built by vfsd/translate.py, which checks it. Nothing of it comes from the guest. */
struct core_ids {
	struct core_id_map to_host[2];
	struct core_id_map to_guest[2];
	uint32_t one_owner;     /* every host id is shown as the same; the guest may set no other */
};

/* Answers one request: length of the reply placed in request->reply, -errno, or VIRTQ_DEFERRED after which fuse_finish
 * is owed. An op that runs as its caller (TMPFILE) does so on this thread only: it is not
 * deferred. */
typedef int64_t (*fuse_door_function)(struct core *core, struct fuse_request *request);

/* Lends one more thread, which runs fuse_lent until that returns. 0, or -errno when there is none to be had. */
typedef int (*fuse_lend_function)(struct core *core, uint32_t work);
#define LEND_SERVE 0 /* serves requests that wait for a disk */
#define LEND_READ 1  /* has READs under way that do */
void fuse_lent(struct core *core, uint32_t work);
/* Has all of them return, once they have nothing to do. */
void fuse_lent_end(struct core *core);

/* virtq_complete, handed over as a pointer: it lives in the other extension. */
typedef void (*virtq_completion)(struct virtq_chain *chain, uint32_t len);
/* virtq_tell, likewise. */
typedef void (*virtq_telling)(struct virtq *queue);

/* What is known of an inode as to DAX, kept with it (dax.c). */
#define DAX_OFFERED 1    /* the guest was told to map it */
#define DAX_MAPPED 2     /* it may have mappings */
#define DAX_UNSUITABLE 4 /* it is not to be offered again: kept with the session, since its nodeid does not last */

/* What a worker asks of the owner of the DAX window, or tells it (token 0); one message each. */
#define WINDOW_SETUP 1
#define WINDOW_REMOVE 2 /* struct fuse_removemapping_one[] follow */
#define WINDOW_FORGET 3 /* the inode is gone */
#define WINDOW_EMPTY 4  /* all are */

struct window_question {
	uint64_t token;         /* comes back with the answer */
	uint32_t kind;          /* WINDOW_* */
	int32_t fd;             /* the file, the owner's from now on */
	uint64_t nodeid;
	uint64_t file_offset;   /* bytes */
	uint64_t offset;        /* in the window */
	uint64_t length;
};

struct window_answer {
	uint64_t token;
	uint64_t nodeid;
	int32_t error;          /* 0 or -errno */
	uint32_t thrashes;      /* the inode is better off without */
};

/* What a migration takes along (state_save.c, state_load.c), in the machine's byte order. When it is loaded it is
 * untrusted. How an inode is found: */
#define STATE_LOST 0   /* it is not: `bytes` is what it was called, `error` the errno that says why */
#define STATE_PATH 1   /* `bytes` is a path from the directory `base` */
#define STATE_HANDLE 2 /* `bytes` is a file handle, opened through the directory `base` of the same mount */

struct state_inode {            /* `len` bytes follow, and zeros up to a multiple of 8 */
	uint64_t nodeid;
	uint64_t nlookup;
	uint64_t base;          /* nodeid, the root's or that of a record before; 0 when lost */
	uint64_t tag;           /* of its file handle, 0: not told */
	uint32_t type;          /* S_IFMT bits */
	int32_t handle_type;
	uint16_t how;           /* STATE_ */
	uint16_t len;
	uint32_t error;
};
#define STATE_BYTES_MAX 4095
#define STATE_ROOM 4160 /* bytes of the largest record, and more */

#define STATE_CONFIRM 1 /* what is known of closed inodes is looked at again */
#define STATE_TAGS 2    /* file handles are told, and compared */
#define STATE_HANDLES 4 /* inodes are found by file handle where the host can, else by path */

struct state_handle {
	uint64_t fh;
	uint64_t nodeid;
	uint32_t flags;         /* open(2) */
	uint32_t flock;         /* F_UNLCK, F_RDLCK or F_WRLCK; not looked at here */
};

/* The descriptors behind a lock owner, and a handle. */
struct state_owner {
	uint64_t nodeid;
	uint64_t owner;
	uint64_t fh;            /* 0: several */
	uint32_t pid;
	int32_t fd;
};

/* Where the numbers of a table have come to: ids that were given are not given again. */
struct state_numbers {
	uint32_t inode_high;
	uint32_t inode_generation;
	uint32_t handle_high;
	uint32_t handle_generation;
};

/* What of a batch of records was filled, or taken in. */
struct state_progress {
	uint64_t bytes;         /* up to the end of the last record */
	uint64_t last;          /* and where that begins */
	int32_t error;          /* 0; or -errno: the last one is not found, or -EBADMSG: it makes no sense */
	uint32_t reserved;
};

/* The last byte of a lock that reaches to the end of the file, wherever that will be. */
#define LOCK_END 0x7fffffffffffffff

/* One of the owners who may have POSIX locks on an inode. */
struct lock_owner {
	uint64_t owner;
	uint32_t pid; /* in the guest */
	int32_t fd;   /* its OFD locks are what it has */
};

/* The time between priv_begin and priv_end, on one thread. */
struct priv {
	int32_t fd;
	uint32_t before;
	uint32_t wanted;
	int32_t dropped;
	struct memo *memo; /* of the request, set before; or NULL, where none can be found in flight */
};

struct core_config {
	int32_t root_fd;        /* O_PATH of the shared directory */
	int32_t proc_fd;        /* this process's /proc/self/fd, and its current directory */
	uint32_t flags;         /* CORE_* */
	uint32_t cache;         /* CORE_CACHE_* */
	uint64_t entry_ns;      /* validity the guest is told, nanoseconds */
	uint64_t attr_ns;
	uint64_t negative_ns;   /* of a name that is not there; 0: not cached */
	uint64_t file_settle_ns; /* cache.c: how long a file or a directory is unchanged before its stamp is one */
	uint64_t dir_settle_ns;
	fuse_door_function door;
	fuse_door_function refused; /* told of what fuse_refuse answers, as far as it could be read; returns nothing */
	virtq_completion complete; /* called by fuse_finish; may be NULL where nothing is deferred */
	virtq_telling tell;     /* called by a ring's thread before what may take long; NULL: nothing is held back */
	fuse_lend_function lend;   /* NULL: no threads to be had */
	struct core_session *session;
	void *inodes;           /* arenas */
	void *handles;
	void *locks;
	void *memos;            /* struct memo of each head of each ring, then a page for each; NULL: nothing is kept */
	uint64_t memos_size;    /* bytes */
	char label[256];        /* the host's name of security.selinux; only with FUSE_SECURITY_CTX */
	uint32_t descriptors_max; /* that inodes, handles and locks may hold together; 0: no limit */
	uint64_t inodes_size;   /* bytes */
	uint64_t handles_size;
	uint64_t locks_size;
	const struct core_ids *ids; /* NULL: every id is the same on both sides */
	int32_t window_fd;      /* socket to the owner of the DAX window: struct window_question; -1: none */
	uint64_t dax_min;       /* sizes of files that are offered for it, bytes */
	uint64_t dax_max;
	uint64_t dax_room;      /* that files may take together which are open at the same time, bytes */
	/* The host's name of what the guest knows as security.capability, where it is another one: a modification removes
	 * it. "": the host does that by itself. */
	char capability[256];
};

#endif
