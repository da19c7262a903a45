/* The ops that C serves, named after their opcodes: ops_*.c. Each returns the length of its reply or -errno. */
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

#endif
