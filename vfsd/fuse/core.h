/* The FUSE core as Python sees it: the one header both sides read.
 *
 * Rule 1. One op, one body: a row of the table in serve.c has a function in C, or is served by Python's `OPS`.
 * Rule 2. Everything that outlives a worker lies in the arenas below, as plain records: no pointers, no locks, a valid
 *         mark written last and cleared first. What is loaded from them is checked: they are untrusted.
 * Rule 3. Results are -errno. No threads are made here; no globals but thread-local scratch.
 */
#ifndef VFSD_FUSE_CORE_H
#define VFSD_FUSE_CORE_H

#include <stdint.h>
#include <sys/uio.h>

#include "config.h"
#include "newer.h"
#include "virtq.h"

/* One request as the door shows it to Python. Guest memory is not in it: `arg` was copied, once. */
struct fuse_request {
	struct virtq_chain *chain;
	struct fuse_in_header header;
	const uint8_t *arg;     /* what follows the header: fixed arguments, names, values, extensions */
	uint32_t arg_len;
	uint8_t *reply;         /* scratch for the reply without its header */
	uint32_t reply_max;     /* bytes the guest has room for, at most the scratch */
	uint32_t names_end;     /* where in `arg` the names end */
	uint32_t found;         /* CREATE: the file was there */
	uint32_t made;          /* by a worker that died, for this request */
	uint32_t waits;         /* its thread may wait for a disk: no ring waits for it */
	struct memo *memo;      /* what is kept of it (once.c), or NULL */
	const struct directory *dir; /* that its names are in, pinned; NULL where it has none */
};

/* Attaches to the arenas: a zeroed one is formatted and gets the root inode, another is validated and its indexes are
 * rebuilt; a record that makes no sense is dropped. NULL with *error = -errno. */
struct core *core_new(const struct core_config *config, int *error);
void core_free(struct core *core);
/* Forgets every lock, handle and inode but the root, closing their descriptors: DESTROY, or the front-end left. */
void core_reset(struct core *core);

/* Virtq_handlers of a struct core: one serves a chain, the other answers EIO to what has killed workers (refuse.c). */
int64_t fuse_serve(void *core, struct virtq_chain *chain);
int64_t fuse_refuse(void *core, struct virtq_chain *chain);
/* Finishes a deferred request: `result` is a reply's length in bytes, or -errno. Completes the chain. */
void fuse_finish(struct core *core, struct virtq_chain *chain, uint64_t unique, const uint8_t *reply, int64_t result);

/* The table: opcodes with a row, whether C serves them, and ONCE_* (memo.h); name NULL where there is no row. */
const char *fuse_row_name(uint32_t opcode);
int fuse_row_in_c(uint32_t opcode);
int fuse_row_once(uint32_t opcode);

/* Pins an inode (handle): its descriptor stays open until the matching put. Returns the descriptor, -ESTALE (-EBADF).
 * Inode descriptors are O_PATH; *mode, if not NULL, gets the file type bits. */
int inode_get(struct core *core, uint64_t nodeid, uint32_t *mode);
void inode_put(struct core *core, uint64_t nodeid);
/* Closes the descriptor of an idle inode after EMFILE or ENFILE: 1, or 0 when there is none. */
int inode_evict(struct core *core);
/* Takes back what an entry gave the guest, as FORGET does: for a reply that is not sent after all. */
void inode_forget(struct core *core, uint64_t nodeid, uint64_t nlookup);
int handle_get(struct core *core, uint64_t fh);
void handle_put(struct core *core, uint64_t fh);
/* Records an open descriptor, which the table then owns, as a handle of `nodeid`. 0 or -errno (fd left alone). */
int handle_add(struct core *core, uint64_t nodeid, int fd, uint64_t *fh);
/* Opens an inode anew through /proc/self/fd. Flags are a guest's, made safe as OPEN does. fd or -errno. */
int inode_open(struct core *core, uint64_t nodeid, uint32_t flags);

/* What LOOKUP answers, nlookup raised, for a descriptor (TMPFILE). 0 or -errno. */
int entry_from_fd(struct core *core, int fd, struct fuse_entry_out *out);
/* Locks that other guests and the host's processes see, set without waiting. `lock_set` (POSIX) locks or unlocks for
 * the owner in `in`, `lock_flock` for the handle. 0 or -errno: -EAGAIN when another's lock is in the way, -ENOLCK when
 * there are no more to be had. */
int lock_set(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in);
int lock_flock(struct core *core, const struct fuse_lk_in *in);
/* What would be in the way of lock_set: F_UNLCK when nothing is. Says nothing of who has it (pid 0). 0 or -errno. */
int lock_test(struct core *core, uint64_t nodeid, const struct fuse_lk_in *in, struct fuse_file_lock *found);
/* From now on `fd`, an eventfd, is written when a lock was freed. -1: nobody waits. */
void lock_watch(struct core *core, int fd);

/* The owner number `index` of an inode, its descriptor pinned until the matching put, which takes what get returns. 0:
 * there are no more. */
uint32_t lock_owner_get(struct core *core, uint64_t nodeid, uint32_t index, struct lock_owner *owner);
void lock_owner_put(struct core *core, uint32_t pinned);

/* The FOPEN_* flags of the reply to an open with `flags` that gave `fd`, perhaps of a file it made: cache.c. */
uint32_t open_reply_flags(struct core *core, uint64_t nodeid, int fd, uint32_t flags, int made);

/* Keeps in mind of an inode that it is DAX_*. */
void dax_note(struct core *core, uint64_t nodeid, uint32_t what);

/* Ids across the translation (config.h, core_ids); `kind` is CORE_UID or CORE_GID. To the host: -EPERM for a forbidden
 * one. What a chown to a guest's id sets: -EINVAL for what is no id, UINT32_MAX where the owner stays as it is. */
int64_t id_to_host(struct core *core, uint32_t kind, uint32_t id);
uint32_t id_to_guest(struct core *core, uint32_t kind, uint32_t id);
int64_t id_to_set(struct core *core, uint32_t kind, uint32_t id);

/* What a modification does to suid and sgid. sgid without group execute stays for members of the file's group. */
#define PRIV_KEEP 0       /* they stay: the caller has CAP_FSETID, or its kernel sees to them */
#define PRIV_KILL 1       /* data changes: they go from regular files */
#define PRIV_KILL_OWNER 2 /* chown: they go from all but directories, root's too */

/* Around one modification of the file that `fd` (O_PATH too) stands for, by the guest's caller uid:gid (all ones:
 * unknown); priv->memo is set. 0; or -errno, when nothing may be modified and priv_end is not due. fd stays open. */
int priv_begin(struct core *core, int fd, int kill, uint32_t uid, uint32_t gid, struct priv *priv);
void priv_end(struct core *core, const struct priv *priv);
/* Before priv_end of what the host refused: no bit goes by hand then. Not for a write, which takes them first. */
void priv_refused(struct priv *priv);

/* For a migration (config.h, state_inode), while no request is served. A walk over the inodes the guest knows, each after
 * the one it is found through; state_save packs the next ones into `to` (STATE_ROOM bytes at least), up to one that is
 * lost; none after the last. STATE_CONFIRM, STATE_TAGS, STATE_HANDLES. */
struct state_walk *state_walk_new(struct core *core, uint32_t flags);
void state_walk_free(struct state_walk *walk);
void state_save(struct state_walk *walk, uint8_t *to, uint64_t size, struct state_progress *progress);
/* Takes in records, up to the first that is not found. With STATE_TAGS a file's handle must be the one that is told. */
void state_load(struct core *core, const uint8_t *from, uint64_t size, uint32_t flags, struct state_progress *progress);
/* The handle (lock owner) in the first used slot from `slot` on, and its descriptor; that slot, 0: there is none. */
uint32_t state_next_handle(struct core *core, uint32_t slot, struct state_handle *handle, int32_t *fd);
uint32_t state_next_owner(struct core *core, uint32_t slot, struct state_owner *owner);
/* Opens a handle anew, under its old fh. 0 or -errno. */
int state_load_handle(struct core *core, const struct state_handle *handle);
/* To be saved; and set, first thing, in empty tables: -EBADMSG when they have no such slots. */
void state_numbers(struct core *core, struct state_numbers *numbers);
int state_set_numbers(struct core *core, const struct state_numbers *numbers);

/* Counts, the root inode's included, also of those with a descriptor; and all that the arenas record (not the root's, the
 * configuration's): fills `fds` up to `max` and returns how many there are. */
uint64_t core_opened_count(struct core *core);
uint64_t core_inode_count(struct core *core);
uint64_t core_handle_count(struct core *core);
uint64_t core_lock_count(struct core *core);
uint64_t core_descriptors(const struct core_config *config, int32_t *fds, uint64_t max);

/* Whether the share's file system can be served by file handles: 0, or -errno, and whether it has any. */
int sys_check_file_handles(int root_fd, int proc_fd, int *encodes);
/* System calls Python's os module lacks; 0 or a length, or -errno. */
int sys_syncfs(int fd);
int sys_statx(int fd, uint32_t flags, uint32_t mask, struct wire_statx *out);

#endif
