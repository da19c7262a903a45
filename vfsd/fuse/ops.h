/* The ops that C serves, named after their opcodes: ops_*.c. Each returns the length of its reply or -errno. And what they
 * share among themselves. */
#ifndef VFSD_FUSE_OPS_H
#define VFSD_FUSE_OPS_H

#include "internal.h"

int64_t op_lookup(struct core *core, struct fuse_request *request);
int64_t op_forget(struct core *core, struct fuse_request *request);
int64_t op_batch_forget(struct core *core, struct fuse_request *request);
int64_t op_getattr(struct core *core, struct fuse_request *request);
int64_t op_setattr(struct core *core, struct fuse_request *request);
int64_t op_readlink(struct core *core, struct fuse_request *request);
int64_t op_symlink(struct core *core, struct fuse_request *request);
int64_t op_mknod(struct core *core, struct fuse_request *request);
int64_t op_mkdir(struct core *core, struct fuse_request *request);
int64_t op_unlink(struct core *core, struct fuse_request *request);
int64_t op_rmdir(struct core *core, struct fuse_request *request);
int64_t op_rename(struct core *core, struct fuse_request *request);
int64_t op_rename2(struct core *core, struct fuse_request *request);
int64_t op_link(struct core *core, struct fuse_request *request);
int64_t op_open(struct core *core, struct fuse_request *request);
int64_t op_create(struct core *core, struct fuse_request *request);
int64_t op_read(struct core *core, struct fuse_request *request);
int64_t op_write(struct core *core, struct fuse_request *request);
int64_t op_flush(struct core *core, struct fuse_request *request);
int64_t op_release(struct core *core, struct fuse_request *request);
int64_t op_fsync(struct core *core, struct fuse_request *request); /* FSYNCDIR too */
int64_t op_fallocate(struct core *core, struct fuse_request *request);
int64_t op_lseek(struct core *core, struct fuse_request *request);
int64_t op_copy_file_range(struct core *core, struct fuse_request *request);
int64_t op_copy_file_range_64(struct core *core, struct fuse_request *request);
int64_t op_statfs(struct core *core, struct fuse_request *request);
int64_t op_opendir(struct core *core, struct fuse_request *request);
int64_t op_readdir(struct core *core, struct fuse_request *request);
int64_t op_readdirplus(struct core *core, struct fuse_request *request);
int64_t op_releasedir(struct core *core, struct fuse_request *request);

/* ops_entry.c. What LOOKUP answers; with `reserved`, room for a descriptor was made before. This and the other entry_
 * functions: 0, ENTRY_KNOWN for an inode that was in the table before, or -errno. */
int entry_at(struct core *core, const struct directory *dir, const char *name, bool reserved,
	     struct fuse_entry_out *out);
/* The same by way of a descriptor, which is the shorter one for an inode that nobody knows. */
int entry_opened(struct core *core, const struct directory *dir, const char *name, struct fuse_entry_out *out);
/* The same for what was made just now, and for which room was made. */
int entry_made(struct core *core, const struct directory *dir, const char *name, struct fuse_entry_out *out);
/* What GETATTR answers of an inode, by a descriptor of it. 0 or -errno. */
int attr_by_fd(struct core *core, uint64_t nodeid, int fd, struct fuse_attr_out *out);
/* The same by an open handle. */
int attr_by_handle(struct core *core, uint64_t nodeid, uint64_t fh, struct fuse_attr_out *out);
/* The entry of an O_PATH descriptor, which is given away with the call; `dir` may be NULL. */
int entry_new(struct core *core, const struct directory *dir, int fd, struct fuse_entry_out *out);

/* export.c: what LOOKUP answers for "." and "..". */
int entry_dots(struct core *core, uint64_t nodeid, const char *name, struct fuse_entry_out *out);

/* ops_file.c */
/* Makes the descriptor of an open, perhaps of a file it made, a handle of `nodeid`, and the reply. It is given away,
 * whatever is returned: 0 or -errno. */
int open_finish(struct core *core, uint64_t nodeid, int fd, uint32_t flags, bool made, struct fuse_open_out *out);
/* The flags of a host open for a guest's flags: only what is safe and allowed here. */
uint32_t host_flags(const struct core *core, uint32_t flags);

#endif
