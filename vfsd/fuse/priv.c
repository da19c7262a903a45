/* A modification takes a file's privileges away: suid, sgid and the file capability.
 *
 * Rule 1. What counts is the file before and after, not what the thread may do or what the host file system is: one
 *         fstat before, and only where there are bits, another after. Bits that should be gone and are not (the host
 *         ignores CAP_FSETID, as over NFS) go by chmod; bits that should have stayed and are gone (the daemon never had
 *         CAP_FSETID, and its caller has) come back by chmod, as far as the host lets us.
 * Rule 2. Where bits have to go the thread gives CAP_FSETID up meanwhile, so that the host takes them away before the
 *         data changes.
 * Rule 3. The host takes security.capability away by itself, but not an attribute of another name that stands for it.
 *         That one goes before the data changes, and if it can't, nothing changes (fs/inode.c, file_remove_privs).
 *
 * Between the look and the modification only the host or another guest can set a bit: a guest's kernel holds the lock of
 * its inode over both.
 */
#include "internal.h"

#include <errno.h>
#include <sys/xattr.h>
#include <unistd.h>

#define SET_ID (S_ISUID | S_ISGID)
#define UNKNOWN UINT32_MAX

/* Whether a kernel would let the caller keep sgid on a file without group execute, which is a mark for locks and no
 * privilege (fs/attr.c, setattr_should_drop_sgid). Of its groups a request tells the primary one. With FUSE_ALLOW_IDMAP
 * it tells none: the bit stays, as the protocol has it (FUSE_HANDLE_KILLPRIV_V2). */
static bool keeps_mark(struct core *core, const struct stat *stat, int kill, uint32_t uid, uint32_t gid)
{
	return gid == UNKNOWN || gid == id_to_guest(core, CORE_GID, stat->st_gid) || (kill == PRIV_KILL_OWNER && uid == 0);
}

/* What the first worker to begin this found: the bits to give back may be gone when another one begins it again. Whether
 * anything was found. */
static bool recall(struct priv *priv, int kill)
{
	uint32_t kept = priv->memo ? priv->memo->priv[kill == PRIV_KILL_OWNER] : 0;

	priv->before = kept >> 12 & 07777;
	priv->wanted = kept & 07777;
	return kept;
}

static void remember(struct priv *priv, int kill)
{
	if (priv->memo)
		priv->memo->priv[kill == PRIV_KILL_OWNER] = 1U << 31 | priv->before << 12 | priv->wanted;
}

static uint32_t wanted(struct core *core, const struct stat *stat, int kill, uint32_t uid, uint32_t gid)
{
	uint32_t mode = stat->st_mode & 07777;

	if (kill == PRIV_KEEP)
		return mode;
	if ((mode & S_IXGRP) || !keeps_mark(core, stat, kill, uid, gid))
		mode &= ~S_ISGID;
	return mode & ~S_ISUID;
}

/* A host's chown takes all but the mark away whoever asks. */
static bool must_drop(uint32_t gone, uint32_t mode, int kill)
{
	if (kill == PRIV_KILL_OWNER)
		return (gone & S_ISGID) && !(mode & S_IXGRP);
	return gone != 0;
}

/* Asks first: a removal, even of nothing, may cost the host a transaction. */
static int remove_attribute(int fd, const char *name)
{
	if (fgetxattr(fd, name, NULL, 0) < 0)
		return errno == ENODATA || errno == EOPNOTSUPP ? 0 : -errno;
	return fremovexattr(fd, name) < 0 && errno != ENODATA ? -errno : 0;
}

static int remove_capability(struct core *core, int fd)
{
	const char *name = core->config.capability;
	int error = remove_attribute(fd, name);
	int file;

	/* No xattr call takes an O_PATH descriptor. */
	if (error != -EBADF)
		return error;
	file = reopen_surely(core, fd, O_RDONLY | O_NONBLOCK);
	if (file == -EACCES) /* who may write need not be allowed to read */
		file = reopen_surely(core, fd, O_WRONLY | O_NONBLOCK);
	if (file < 0)
		return file;
	error = remove_attribute(file, name);
	close(file);
	return error;
}

int priv_begin(struct core *core, int fd, int kill, uint32_t uid, uint32_t gid, struct priv *priv)
{
	struct stat stat;
	uint32_t gone;
	int error;

	*priv = (struct priv){.fd = -1, .memo = priv->memo};
	/* An open that truncates gets here before it is refused. */
	if (core->config.flags & CORE_READONLY)
		return 0;
	if (fstat(fd, &stat) < 0)
		return -errno;
	if (S_ISREG(stat.st_mode) && core->config.capability[0]) {
		error = remove_capability(core, fd);
		if (error < 0)
			return error;
	}
	if (!recall(priv, kill)) {
		if (!(stat.st_mode & SET_ID) || S_ISDIR(stat.st_mode) ||
		    (kill != PRIV_KILL_OWNER && !S_ISREG(stat.st_mode)))
			return 0;
		priv->before = stat.st_mode & 07777;
		priv->wanted = wanted(core, &stat, kill, uid, gid);
		remember(priv, kill);
	}
	priv->fd = fd;
	gone = priv->before & ~priv->wanted;
	if (must_drop(gone, priv->before, kill))
		priv->dropped = cred_drop_fsetid();
	return 0;
}

/* The mode to set by hand where the host left it at `after`. Put back is only what our own call took: not what somebody
 * who meanwhile changed the mode took. */
static uint32_t mend(const struct priv *priv, uint32_t after)
{
	uint32_t mode = after & ~(priv->before & ~priv->wanted & SET_ID);

	if ((after & 0777) == (priv->before & 0777))
		mode |= priv->wanted & SET_ID;
	return mode;
}

void priv_refused(struct priv *priv)
{
	priv->before = priv->wanted;
}

void priv_end(struct core *core, const struct priv *priv)
{
	struct stat stat;
	uint32_t mode, raised;

	cred_restore_fsetid(priv->dropped);
	if (priv->fd < 0 || fstat(priv->fd, &stat) < 0)
		return;
	mode = mend(priv, stat.st_mode & 07777);
	if (mode == (stat.st_mode & 07777))
		return;
	raised = cred_raise_owner();
	/* Refused where the file is not ours: the host's word stands then. */
	set_mode(core, priv->fd, mode);
	cred_lower_owner(raised);
}

int truncation_kills(const struct core *core, const struct fuse_request *request, uint32_t open_flags)
{
	if (open_flags & FUSE_OPEN_KILL_SUIDGID)
		return PRIV_KILL;
	/* A guest that did not agree on the flag does not send it: root keeps the bits, others don't. */
	return negotiated(core, FUSE_HANDLE_KILLPRIV_V2) || request->header.uid == 0 ? PRIV_KEEP : PRIV_KILL;
}
