/* What the files of the core share among themselves. Included first: it asks libc for statx, preadv2 and the like. */
#ifndef VFSD_FUSE_INTERNAL_H
#define VFSD_FUSE_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <fcntl.h>
#include <stddef.h>
#include <sys/stat.h>

#include "aside.h"
#include "core.h"
#include "slots.h"

/* Bytes. A request is at most a SETXATTR: 64 KiB of value (XATTR_SIZE_MAX), its name, and extensions. A reply in
 * scratch is at most a 64 KiB xattr, or as much of a directory as is worth one request. READ and WRITE use neither. */
#define REQUEST_MAX (128 << 10)
#define REPLY_MAX (128 << 10)
#define DIRENTS_MAX (64 << 10)

/* Directories whose position can be used at the same time. */
#define POSITIONS 64

/* Chains of the lock table's index. */
#define LOCK_BUCKETS 1024
/* No handle has this fh. */
#define EVERY_HANDLE UINT64_MAX

struct scratch {
	uint64_t request[REQUEST_MAX / 8];
	uint64_t reply[REPLY_MAX / 8];
	uint64_t dirents[DIRENTS_MAX / 8];
	struct iovec iov[VIRTQ_MAX_CHAIN];
	struct memo *memo; /* of the request that is served, while one of its effects may have to be undone; or NULL */
};

/* The calling thread's scratch, mapped at its first request and kept: a ring's threads live as long as their process.
 * NULL when out of memory. */
struct scratch *scratch_get(void);

/* Shared by the open directories whose fh has a remainder in common. */
struct position {
	pthread_mutex_t lock;
	uint64_t fh;     /* whose descriptor is known to stand at `offset`; 0: nobody's */
	uint64_t offset;
};

/* What evict.c keeps, under the inode table's lock. */
struct evictor {
	uint32_t *slot_of_fd; /* of the inodes whose descriptor may be closed, by descriptor */
	uint32_t size;        /* descriptors it has room for */
	uint32_t high;        /* beyond the highest in use */
	uint32_t hand;
	uint32_t opened;      /* inodes with a descriptor, the root apart */
	uint32_t moving;      /* names that are changed without regard to closed inodes */
	uint32_t moved;       /* and how many were */
	uint32_t choosing;    /* threads that look for one to close */
	bool tight;           /* there may be closed inodes */
};

/* A mount on which file handles were tried (mounts.c). */
struct mount {
	uint64_t dev;
	uint64_t mnt_id;
	uint32_t slot; /* of the directory that file handles are opened through, while uses > 0 */
	uint32_t uses;
	int fd;        /* of that directory, for open_by_handle_at; -1: not yet */
	bool takes;    /* file handles */
	bool known;
};
#define MOUNTS_MAX 64

struct dax_use; /* dax_room.c */

/* Under the inode table's lock. */
struct dax_room {
	struct dax_use *uses; /* by slot of the inode table; NULL: there is room for all */
	uint32_t open;        /* ranges that open files take */
	uint32_t offered[2];  /* ranges offered in this second and the last, by parity */
	uint32_t second;
};

struct core {
	struct core_config config;
	struct later later;
	struct reader reader;
	uint32_t usual_copy;      /* usual.h; of short ones */
	uint32_t usual_fallocate;
	struct slots inodes;
	struct slots handles;
	struct slots locks;
	uint32_t lock_buckets[LOCK_BUCKETS]; /* first slot of each chain, 0: empty; under the lock table's lock */
	int lock_watch;          /* eventfd, or -1; under the same */
	uint32_t *buckets;       /* first slot of each chain, 0: empty; under the inode table's lock */
	uint32_t bucket_mask;
	uint64_t hash_seed;
	uint64_t root_dev;       /* inode_key.dev of the share's own file system */
	uint32_t root_traits;    /* file_system_traits of it */
	bool can_map;            /* dax_possible */
	bool has_fchmodat2;      /* the host */
	struct dax_room room;
	uint32_t tails;          /* records of the inode table that are no inodes (inode.h) */
	struct evictor evictor;
	struct mount mounts[MOUNTS_MAX];
	uint32_t mounts_next;    /* the next to be replaced */
	struct position position[POSITIONS];
};

/* Whether a terminated name is "." or "..". */
static inline bool is_dots(const char *name)
{
	return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

typedef int64_t (*op_function)(struct core *core, struct fuse_request *request);

static inline bool negotiated(const struct core *core, uint64_t flag)
{
	return (core->config.session->flags & flag) != 0;
}

/* iov.c: over the bytes [offset, offset + len) of an array of buffers. Each returns what it found there. */
uint64_t iov_gather(const struct iovec *iov, uint32_t count, uint64_t offset, void *to, uint64_t len);
uint64_t iov_scatter(const struct iovec *iov, uint32_t count, uint64_t offset, const void *from, uint64_t len);
/* The same bytes as an array of at most `max` non-empty buffers; *parts is their number. */
uint64_t iov_split(const struct iovec *iov, uint32_t count, uint64_t offset, uint64_t len, struct iovec *to,
		   uint32_t max, uint32_t *parts);

/* What tells one host inode from another. The birth time is 0 where the file system keeps none. */
struct inode_key {
	uint64_t dev;
	uint64_t ino;
	uint64_t mnt_id;
	int64_t btime; /* ns */
	uint32_t type; /* S_IFMT bits */
};

/* The descriptors found in arenas no worker runs on: as many as fit, and how many there are. */
struct collection {
	int32_t *fds;
	uint64_t max;
	uint64_t count;
};

static inline void collect_fd(struct collection *to, int fd)
{
	if (to->count < to->max)
		to->fds[to->count] = fd;
	to->count++;
}

void inode_descriptors(const struct core_config *config, struct collection *to);
void handle_descriptors(const struct core_config *config, struct collection *to);
void lock_descriptors(const struct core_config *config, struct collection *to);

/* inode.c */
int inode_table_open(struct core *core);
void inode_table_close(struct core *core);
void inode_table_reset(struct core *core);
/* inode_get which also tells the key. */
int inode_get_key(struct core *core, uint64_t nodeid, struct inode_key *key);
/* The key of a nodeid, whatever became of its descriptor. 0 or -ESTALE. */
int inode_key(struct core *core, uint64_t nodeid, struct inode_key *key);
/* Where an inode was found: by a name in a directory, or as a descriptor of it (name ""). */
struct found {
	int fd;
	const char *name;
	uint64_t dir; /* nodeid of the directory, 0: unknown */
};
/* The nodeid of a key, nlookup raised; 0 when unknown. */
uint64_t inode_find(struct core *core, const struct inode_key *key, const struct found *found);
/* The same for a key whose O_PATH descriptor is given away with the call, whatever it returns. `dir`: where it was
 * found, or 0. 0, ENTRY_KNOWN when it was in the table before, or -errno. */
#define ENTRY_KNOWN 1
int inode_add(struct core *core, const struct inode_key *key, int fd, uint64_t dir, uint64_t *nodeid);
/* Whether any inode of that number is in the table. */
bool inode_is_about(struct core *core, uint64_t dev, uint64_t ino);

/* Remembers a stamp for an inode, 0: none. Whether it is the one that was remembered. */
bool inode_stamp(struct core *core, uint64_t nodeid, uint64_t stamp);

/* cache.c. What the file system of a descriptor is known to do, TRAIT_*; and of one that is open on an inode. */
uint32_t file_system_traits(int fd);
uint32_t inode_traits(struct core *core, uint64_t nodeid, int fd);
#define TRAIT_FILES 1  /* times tell of every change to a file, once it has settled */
#define TRAIT_DIRS 2   /* and to a directory */
#define TRAIT_CLOSES 4 /* close(2) has nothing to report */
#define TRAIT_MAPS 8   /* a mapping shares its pages with whatever reads and writes the file */
#define TRAIT_MEMORY 16 /* there is no disk to wait for */

/* dax.c. Whether files of the share may be mapped at all. */
bool dax_possible(const struct core *core);
/* FUSE_ATTR_DAX, if the guest is to map this file, or 0. */
uint32_t dax_attr(struct core *core, uint64_t nodeid, const struct statx *stat);
/* Whether the guest may be mapping it. */
bool dax_offered(struct core *core, uint64_t nodeid);
/* dax_room.c. After the inode table is open; 0 or -ENOMEM. */
int dax_room_open(struct core *core);
void dax_room_close(struct core *core);
/* A handle begins, which has `fd`; and one ends of which the first said true. */
bool dax_opened(struct core *core, uint64_t nodeid, int fd);
void dax_closed(struct core *core, uint64_t nodeid);

/* handle.c */
int handle_table_open(struct core *core);
void handle_table_close(struct core *core);
void handle_table_reset(struct core *core);
/* For a migration: the descriptor and the nodeid of a valid record; and a record with an fh that is given, its slot
 * reserved and free. */
int handle_record_of(struct core *core, uint32_t slot, uint64_t *nodeid);
void handle_place(struct core *core, uint64_t fh, uint64_t nodeid, int fd);
/* handle_get for data: *plain is kept with the handle for this worker's life, 0 at first. */
int handle_get_data(struct core *core, uint64_t fh, uint8_t **plain);
/* Ends a handle: its descriptor is closed with its last pin. 0 or -EBADF. */
int handle_release(struct core *core, uint64_t fh);
/* Whether a descriptor found in a record is open on the inode that the record names. */
bool descriptor_is_of(struct core *core, int fd, uint64_t nodeid);

/* lock.c */
int lock_table_open(struct core *core);
void lock_table_close(struct core *core);
void lock_table_reset(struct core *core);
/* Frees what an owner has locked of an inode, by POSIX. */
void lock_release(struct core *core, uint64_t nodeid, uint64_t owner);
/* The same for all owners who used no other handle than `fh`; or for all owners, EVERY_HANDLE. */
void lock_release_handle(struct core *core, uint64_t nodeid, uint64_t fh);
/* A lock that others wait for may be free: says so to who watches. */
void lock_wake(struct core *core);
/* The descriptor of any open handle of an inode, pinned as *fh; -EBADF when there is none. Looks at every handle. */
int handle_of_inode(struct core *core, uint64_t nodeid, uint64_t *fh);

/* evict.c. Room for `wanted` more descriptors, which those of idle inodes make. Asked before one is opened: the table of
 * descriptors is shared with the control process, which must find room in it. 0, or -ENFILE when what is open fills it. */
int make_room(struct core *core, uint32_t wanted);
/* Before a name is taken away from an inode (rename, unlink): the inode it leads to keeps its descriptor, so that it is
 * not lost. A token for the matching inode_moved. `dir_fd` is a directory, `seen` what the name led to just now, or NULL. */
uint64_t inode_moving(struct core *core, int dir_fd, const char *name, const struct memo_name *seen);
void inode_moved(struct core *core, uint64_t token);
/* The same for an open file or directory: some room is left for inodes. */
int make_room_for_handle(struct core *core);
/* After an open failed with this errno: whether another descriptor was closed, so that it may be tried again. */
bool out_of_descriptors(struct core *core, int error);
/* openat and reopen (host.c) that do so themselves. fd or -errno. */
int open_surely(struct core *core, int dir_fd, const char *name, uint32_t flags, uint32_t mode);
int reopen_surely(struct core *core, int fd, uint32_t flags);

/* file_handle.c. A host file handle: how it is opened again, and a digest that tells it from others. */
#define FILE_HANDLE_MAX 128 /* bytes (MAX_HANDLE_SZ) */
struct inode_handle {
	uint64_t tag;  /* 0: the file system has none */
	int type;
	uint32_t len;  /* 0: it can't be opened */
	char bytes[FILE_HANDLE_MAX];
};
/* Of a name in a directory, or of a descriptor (name ""). */
void file_handle_of(int fd, const char *name, struct inode_handle *to);
/* An O_PATH descriptor of it; `mount_fd` is one of the same mount, not O_PATH. fd or -errno. */
int file_handle_open(int mount_fd, int type, const char *bytes, uint32_t len);

/* host.c. What a descriptor stands for; and a name in a directory, without following a symlink or setting off an
 * automount. 0 or -errno. The key of an inode in the table is always that of its descriptor. */
int stat_fd(int fd, struct statx *stat);
int stat_name(int dir_fd, const char *name, struct statx *stat);
void key_of(const struct statx *stat, struct inode_key *key);
void fill_attr(struct core *core, const struct statx *stat, struct fuse_attr *attr);
/* The name of a descriptor in /proc/self/fd, which is core_config.proc_fd and the current directory. */
struct fd_name {
	char text[12];
};
const char *fd_name(int fd, struct fd_name *room);
/* Whether what a descriptor stands for, an O_PATH one too, has this extended attribute. */
bool has_xattr(int fd, const char *name);
/* Opens what a descriptor stands for anew, through /proc/self/fd: no name is looked up. fd or -errno. */
int reopen(const struct core *core, int fd, uint32_t flags);
/* An O_PATH descriptor of what a path leads to below a directory, through no symlink. fd or -errno. */
int open_beneath(int dir_fd, const char *path);
/* Where the kernel says a descriptor leads, at most `size` - 1 bytes, and NUL. Their number, or -errno. */
ssize_t path_of(const struct core *core, int fd, char *path, size_t size);
/* chmod, truncate and link of what a descriptor stands for, an O_PATH one too. 0 or -errno. */
int set_mode(const struct core *core, int fd, uint32_t mode);
bool has_fchmodat2(void);
int truncate_fd(int fd, uint64_t size);
int link_fd(const struct core *core, int fd, int dir_fd, const char *name);

/* ids.c: the caller of a request as the host knows it. 0, or -EPERM when one of its ids is forbidden. */
int ids_of_caller(struct core *core, uint32_t *uid, uint32_t *gid, uint32_t *groups, uint32_t count);

/* once.c: what makes a request happen once though it may be served twice. */
/* Whether anything is to be kept of a request, so that the next three are due. */
bool once_due(uint32_t opcode);
/* Before it is served. ONCE_SERVE: it is to be served; or what to answer. */
#define ONCE_SERVE INT64_MIN
int64_t once_begin(struct core *core, struct fuse_request *request);
/* Then, with its directory pinned: looks at `name`, the first it brings, and whether it was made already. 0 or -errno. */
int once_look(struct core *core, struct fuse_request *request, const char *name);
/* Keeps what an op has seen before it did anything: where it is served again it finds that, and has_fact. */
void once_fact(struct memo *memo, int64_t fact);
/* After it was served, or put off. */
void once_end(const struct fuse_request *request, int64_t result);
/* After one was served that had been put off. */
void once_finish(const struct core *core, struct virtq_chain *chain, uint64_t unique, const uint8_t *reply,
		 int64_t result);
/* For one that is to be answered EIO and not served: takes back what it gave. Where it was done, what came of it is its
 * answer: the length of the reply, or -errno. */
int64_t once_refuse(struct core *core, struct fuse_request *request);
/* The memo of a request of which something is to be kept, perhaps all of a sudden; or NULL. */
struct memo *once_memo(struct core *core, struct fuse_request *request);
/* The memo of the request that the calling thread serves, or NULL. */
struct memo *memo_current(void);

/* nlookup.c. FORGET, as change number `steps` of a request that has a memo. */
void nlookup_forget(struct core *core, uint64_t nodeid, uint64_t nlookup, struct memo *memo, uint32_t steps);
/* Takes back all that a request told of. */
void nlookup_take_back(struct core *core, struct memo *memo);

/* ops_dir.c. Nothing is known any more of where the descriptor of an open directory stands. */
void position_forget(struct core *core, uint64_t fh);

/* A directory that is pinned, as names are looked up in it. */
struct directory {
	int fd;
	uint64_t nodeid;
	struct inode_key key; /* tells where a submount begins */
};

/* priv.c: PRIV_KEEP or PRIV_KILL, for an open that truncates. */
int truncation_kills(const struct core *core, const struct fuse_request *request, uint32_t open_flags);
/* creation.c: takes a caller's umask off the mode of what it makes, where that is left to us. */
void umask_apply(const struct core *core, struct fuse_request *request, uint32_t mode_at, uint32_t umask_at);

/* extension.c: the last extension of a request whose type lies in [least, most]. 1, 0 when there is none, -EINVAL when
 * any is malformed. */
struct extension {
	const uint8_t *body; /* not aligned */
	uint32_t size;       /* bytes */
	uint32_t type;
};
int extension_find(const struct fuse_request *request, uint32_t least, uint32_t most, struct extension *found);

/* label.c */
struct label {
	const uint8_t *value; /* in the request */
	uint32_t size;        /* bytes; 0: none */
};
/* The label that a request brings for what it makes, before anything is made. 0 or -errno. */
int label_read(const struct core *core, const struct fuse_request *request, struct label *label);
/* Gives it to what an op has made, whose reply has `length` bytes and starts with the entry; `name` is NULL for what has
 * none. Returns the length, or -errno with nothing made. */
int64_t label_new(struct core *core, const struct fuse_request *request, const struct label *label, const char *name,
		  int64_t length);

/* cred.c */
struct cred {
	bool groups;
	bool gid;
	bool uid;
};
/* Takes the identity of the caller of `request`, for the calling thread only. 0, or -errno with nothing changed. */
int cred_enter(struct core *core, const struct fuse_request *request, struct cred *cred);
/* Gives it back, or ends the process: to go on as somebody else is worse. */
void cred_leave(const struct cred *cred);
/* CAP_FSETID of the calling thread. 1 when it had it. */
int cred_drop_fsetid(void);
void cred_restore_fsetid(int dropped);
/* CAP_FOWNER and CAP_FSETID, also while the thread runs as its caller: to set the mode of another's file. The bits that
 * were added. */
uint32_t cred_raise_owner(void);
void cred_lower_owner(uint32_t raised);
/* Whether the calling thread has taken a caller's identity, and so lacks rights of ours. */
bool cred_acting(const struct core *core);
/* CAP_DAC_OVERRIDE, where a caller that is not root was given it (cred.c, keep_word). */
int cred_drop_dac_override(void);
void cred_restore_dac_override(int dropped);

#endif
