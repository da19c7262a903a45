/* Rule: a function here is one system call, or the least that makes one call usable from Python. No policy. */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"

/* <sys/mount.h> of glibc 2.36 clashes with <linux/mount.h>: these two are declared as it does. */
extern int mount(const char *, const char *, const char *, unsigned long, const void *);
extern int umount2(const char *, int);

_Static_assert(PROCESS_SHARE_FILES == CLONE_FILES, "clone flags are kernel ABI");
_Static_assert(PROCESS_NEW_MOUNT == CLONE_NEWNS && PROCESS_NEW_USER == CLONE_NEWUSER, "clone flags are kernel ABI");
_Static_assert(PROCESS_SIBLING == CLONE_PARENT, "clone flags are kernel ABI");
_Static_assert(PROCESS_NEW_PID == CLONE_NEWPID && PROCESS_NEW_NET == CLONE_NEWNET, "clone flags are kernel ABI");

static int result(long value)
{
	return value < 0 ? -errno : (int)value;
}

static long raw_clone(unsigned long flags, int *pidfd, void *tid_address)
{
	/* The order of clone's arguments differs between architectures (clone(2), "C library/kernel differences"). */
#if defined(__x86_64__)
	return syscall(SYS_clone, flags, NULL, pidfd, tid_address, 0UL);
#elif defined(__s390x__)
	return syscall(SYS_clone, NULL, flags, pidfd, tid_address, 0UL);
#else
	return syscall(SYS_clone, flags, NULL, pidfd, 0UL, tid_address);
#endif
}

/* Where libc caches the main thread's id. A fork must refresh it, or locks that record an owner, and pthread_kill,
 * would take the child for its parent. NULL on kernels built without CHECKPOINT_RESTORE: the stale id is then one that
 * no thread of the child can have while the parent lives. */
static void *libc_tid_address(void)
{
	void *address = NULL;

	if (prctl(PR_GET_TID_ADDRESS, &address) < 0)
		return NULL;
	return address;
}

int process_fork(unsigned long flags, int *pidfd)
{
	/* cffi released the GIL around this call; the hooks need it. */
	PyGILState_STATE state = PyGILState_Ensure();
	void *tid_address = libc_tid_address();
	long pid;
	int error;

	flags |= CLONE_PIDFD | SIGCHLD;
	if (tid_address)
		flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;

	PyOS_BeforeFork();
	pid = raw_clone(flags, pidfd, tid_address);
	error = errno;
	if (pid == 0)
		PyOS_AfterFork_Child();
	else
		PyOS_AfterFork_Parent();
	PyGILState_Release(state);
	return pid < 0 ? -error : (int)pid;
}

int process_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	return result(mount(source, target, type, flags, data));
}

int process_mount_readonly(const char *target)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };

	/* AT_FDCWD and AT_RECURSIVE by value: <fcntl.h> and <linux/fcntl.h> cannot both be included. */
	return result(syscall(SYS_mount_setattr, -100, target, 0x8000, &attr, sizeof(attr)));
}

static int set_option(int context, const char *name, const char *value)
{
	unsigned int command = value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;

	return result(syscall(SYS_fsconfig, context, command, name, value, 0));
}

int process_mount_fuse(int device)
{
	int context = result(syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC));
	int mounted = 0;
	char fd[16];

	if (context < 0)
		return context;
	snprintf(fd, sizeof(fd), "%d", device);
	if ((mounted = set_option(context, "fd", fd)) == 0 &&
	    (mounted = set_option(context, "rootmode", "40000")) == 0 &&
	    (mounted = set_option(context, "user_id", "0")) == 0 &&
	    (mounted = set_option(context, "group_id", "0")) == 0 &&
	    (mounted = set_option(context, "allow_other", NULL)) == 0 &&
	    (mounted = result(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))) == 0)
		mounted = result(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
					 MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC));
	close(context);
	return mounted;
}

int process_join(int fd)
{
	return result(syscall(SYS_setns, fd, 0));
}

int process_umount(const char *target, int flags)
{
	return result(umount2(target, flags));
}

int process_pivot_root(const char *new_root, const char *put_old)
{
	return result(syscall(SYS_pivot_root, new_root, put_old));
}

int process_set_death_signal(int signal)
{
	return result(prctl(PR_SET_PDEATHSIG, signal));
}

int process_set_no_new_privs(void)
{
	return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

int process_set_name(const char *name)
{
	return result(prctl(PR_SET_NAME, name));
}

int process_capabilities(uint64_t *effective, uint64_t *permitted, uint64_t *inheritable)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	*effective = (uint64_t)data[1].effective << 32 | data[0].effective;
	*permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
	*inheritable = (uint64_t)data[1].inheritable << 32 | data[0].inheritable;
	return 0;
}

int process_set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {
		{ (uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable },
		{ (uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32) },
	};

	return result(syscall(SYS_capset, &header, data));
}

int process_bound_capabilities(uint64_t keep)
{
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	/* PR_CAPBSET_READ fails past the last capability the kernel knows. */
	for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap) < 0)
			return -errno;
	}
	return 0;
}
