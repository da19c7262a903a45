/* The identity of the calling thread. Only this file changes one.
 *
 * Rule 1. Raw system calls: libc's wrappers change every thread of the process.
 * Rule 2. setresuid, not setfsuid: it reports errors, and it drops every effective capability, where setfsuid leaves
 *         those that are not about files (CAP_SYS_RESOURCE would let a guest's user pass the host's quota). The saved
 *         ids stay 0, so the way back is open; on it the kernel copies the permitted set to the effective one again
 *         (capabilities(7), "Effect of user ID changes on capabilities"). Both clear PDEATHSIG and the dumpable flag.
 * Rule 3. Group before user on the way in: without CAP_SETGID no group can be changed. The reverse on the way out.
 * Rule 4. A thread that cannot get its identity back ends the process: to go on as somebody else is worse.
 *
 * The worker drops its own supplementary groups before it lends a thread, and runs as 0:0 of its user namespace
 * wherever CORE_PRIVILEGED is set. Its umask is 0: the guest applies its own.
 */
#include "internal.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As many as a request may bring; Linux sends one (fs/fuse/dir.c, get_create_supp_group). */
#define GROUPS_MAX 32
#define INVALID_ID UINT32_MAX
/* Of the protocol. */
#define MINOR_LINUX_6_1 37

static int change(long number, long a, long b, long c)
{
	return syscall(number, a, b, c) < 0 ? -errno : 0;
}

static void restore(long number, long a, long b, long c)
{
	if (change(number, a, b, c) < 0)
		abort();
}

struct capabilities {
	struct __user_cap_header_struct header;
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

static void capabilities_read(struct capabilities *caps)
{
	*caps = (struct capabilities){.header = {.version = _LINUX_CAPABILITY_VERSION_3}};
	restore(SYS_capget, (long)&caps->header, (long)caps->data, 0);
}

struct groups {
	uint32_t count;
	uint32_t ids[GROUPS_MAX];
};

/* The supplementary groups a request brings in an extension. -EINVAL when malformed. */
static int groups_read(const struct fuse_request *request, struct groups *groups)
{
	struct extension extension;
	int found = extension_find(request, EXT_GROUPS, EXT_GROUPS, &extension);
	uint32_t count;

	groups->count = 0;
	if (found <= 0)
		return found;
	if (extension.size < sizeof(count))
		return -EINVAL;
	memcpy(&count, extension.body, sizeof(count));
	if (count > GROUPS_MAX || count * sizeof(uint32_t) > extension.size - sizeof(count))
		return -EINVAL;
	memcpy(groups->ids, extension.body + sizeof(count), count * sizeof(uint32_t));
	groups->count = count;
	return 0;
}

/* What the guest has checked itself and the host can't, for a caller that is not root here.
 *
 * The guest's root, whose id is translated, is root where it comes from. Of others a guest before Linux 6.3 cannot name
 * the groups, so its word must stand; from Linux 6.1 on it has also taken sgid off what its caller may not give that bit
 * (fs/namei.c, vfs_prepare_mode). */
static void keep_word(const struct core *core, bool root)
{
	struct capabilities caps;
	uint32_t bits = 1U << CAP_DAC_OVERRIDE;

	if (root || core->config.session->minor >= MINOR_LINUX_6_1)
		bits |= 1U << CAP_FSETID;
	if (root)
		bits |= 1U << CAP_MKNOD;
	capabilities_read(&caps);
	caps.data[0].effective |= caps.data[0].permitted & bits;
	restore(SYS_capset, (long)&caps.header, (long)caps.data, 0);
}

int cred_enter(struct core *core, const struct fuse_request *request, struct cred *cred)
{
	bool extension = negotiated(core, FUSE_CREATE_SUPP_GROUP), root = request->header.uid == 0;
	uint32_t uid = request->header.uid, gid = request->header.gid;
	struct groups groups = {0};
	int error = 0;

	*cred = (struct cred){0};
	if (extension && (error = groups_read(request, &groups)) < 0)
		return error;
	/* -1 means "leave as it is" to the kernel, and "nobody" to a guest with FUSE_ALLOW_IDMAP. */
	if (uid == INVALID_ID || gid == INVALID_ID)
		return -EINVAL;
	error = ids_of_caller(core, &uid, &gid, groups.ids, groups.count);
	if (error < 0 || !(core->config.flags & CORE_PRIVILEGED))
		return error;
	if (groups.count && uid) {
		error = change(SYS_setgroups, groups.count, (long)groups.ids, 0);
		cred->groups = error == 0;
	}
	if (error == 0 && gid) {
		error = change(SYS_setresgid, -1, gid, -1);
		cred->gid = error == 0;
	}
	if (error == 0 && uid) {
		error = change(SYS_setresuid, -1, uid, -1);
		cred->uid = error == 0;
	}
	if (error < 0)
		cred_leave(cred);
	else if (cred->uid && (root || !extension))
		keep_word(core, root);
	return error;
}

void cred_leave(const struct cred *cred)
{
	if (cred->uid)
		restore(SYS_setresuid, -1, 0, -1);
	if (cred->gid)
		restore(SYS_setresgid, -1, 0, -1);
	if (cred->groups)
		restore(SYS_setgroups, 0, 0, 0);
}

bool cred_acting(const struct core *core)
{
	return (core->config.flags & CORE_PRIVILEGED) && syscall(SYS_geteuid) != 0;
}

/* Takes a capability out of the effective set. 1 when it was there. */
static int drop(int capability)
{
	struct capabilities caps;
	uint32_t bit = 1U << capability;

	capabilities_read(&caps);
	if (!(caps.data[0].effective & bit))
		return 0;
	caps.data[0].effective &= ~bit;
	restore(SYS_capset, (long)&caps.header, (long)caps.data, 0);
	return 1;
}

static void raise_again(int capability)
{
	struct capabilities caps;

	capabilities_read(&caps);
	caps.data[0].effective |= 1U << capability;
	restore(SYS_capset, (long)&caps.header, (long)caps.data, 0);
}

int cred_drop_fsetid(void)
{
	return drop(CAP_FSETID);
}

void cred_restore_fsetid(int dropped)
{
	if (dropped)
		raise_again(CAP_FSETID);
}

uint32_t cred_raise_owner(void)
{
	struct capabilities caps;
	uint32_t bits, had;

	capabilities_read(&caps);
	had = caps.data[0].effective;
	bits = caps.data[0].permitted & (1U << CAP_FOWNER | 1U << CAP_FSETID);
	if (!(bits & ~had))
		return 0;
	caps.data[0].effective |= bits;
	restore(SYS_capset, (long)&caps.header, (long)caps.data, 0);
	return bits & ~had;
}

void cred_lower_owner(uint32_t raised)
{
	struct capabilities caps;

	if (!raised)
		return;
	capabilities_read(&caps);
	caps.data[0].effective &= ~raised;
	restore(SYS_capset, (long)&caps.header, (long)caps.data, 0);
}

int cred_drop_dac_override(void)
{
	return syscall(SYS_geteuid) ? drop(CAP_DAC_OVERRIDE) : 0;
}

void cred_restore_dac_override(int dropped)
{
	if (dropped)
		raise_again(CAP_DAC_OVERRIDE);
}
