/* System calls about the process itself that Python 3.11's os module lacks. Thin: each returns -errno or what the call
 * returns. Used by sandbox.py, control.py and worker.py only, and before or outside the rings. */
#ifndef VFSD_PROCESS_H
#define VFSD_PROCESS_H

#include <stdint.h>

/* clone(2) flags a caller of process_fork may ask for. */
#define PROCESS_SHARE_FILES 0x00000400 /* CLONE_FILES: one descriptor table for parent and child */
#define PROCESS_NEW_MOUNT 0x00020000   /* CLONE_NEWNS */
#define PROCESS_NEW_USER 0x10000000    /* CLONE_NEWUSER */
#define PROCESS_NEW_PID 0x20000000     /* CLONE_NEWPID */
#define PROCESS_NEW_NET 0x40000000     /* CLONE_NEWNET */
#define PROCESS_SIBLING 0x00008000     /* CLONE_PARENT: a child of the caller's parent */

/* Forks with clone(flags | CLONE_PIDFD | SIGCHLD) and CPython's fork hooks run as os.fork does. The caller must be the
 * only thread of its process and hold no lock: libc's own fork handlers do not run. Returns the child's pid in the
 * parent, with *pidfd set (close-on-exec); 0 in the child; -errno. */
int process_fork(unsigned long flags, int *pidfd);

/* mount(2) with MS_* flags; the strings may be NULL. */
int process_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);
/* Makes the mount at `target` and all below it read-only, keeping their other flags (mount_setattr(2), Linux 5.12). */
int process_mount_readonly(const char *target);
/* A FUSE mount that is nowhere in the tree of files (fsmount(2), Linux 5.2), served through `device`, an open /dev/fuse.
 * Returns a descriptor of its root; the mount goes with its last descriptor. Every user may use what is opened there. */
int process_mount_fuse(int device);
/* The calling process, which has one thread, joins the namespace of a descriptor (setns(2)); where that is a PID
 * namespace, its children do. */
int process_join(int fd);
int process_umount(const char *target, int flags);
int process_pivot_root(const char *new_root, const char *put_old);
/* The calling process gets `signal` when the thread that forked it ends; 0 clears. */
int process_set_death_signal(int signal);
int process_set_no_new_privs(void);
/* The calling thread's name as ps shows it, cut to 15 bytes. */
int process_set_name(const char *name);

/* Capability sets as 64-bit masks, bit n = capability n (capget(2), capset(2), version 3), of the calling thread. */
int process_capabilities(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable);
int process_set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable);
/* Drops every capability outside `keep` from the bounding set, and clears the ambient set. */
int process_bound_capabilities(uint64_t keep);

#endif
