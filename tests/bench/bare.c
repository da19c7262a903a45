/* One function for each operation of bare.h. */
#include "bare.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

#define PAGES 256
/* Units between two looks at the clock, of what takes a microsecond. */
#define STRIDE 16

/* What a lane's thread has. */
struct lane {
	struct bare *bare;
	struct bare_place *place;
	char *buffer;
	int64_t (*operation)(struct lane *lane);
	uint64_t begun;
	uint64_t units;
	int error;
};

static uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* The operations return their units, or -1 with errno. */

static int stat_of(int fd, const char *name)
{
	struct statx found;

	return statx(fd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &found);
}

static int64_t do_getattr(struct lane *lane)
{
	return stat_of(lane->place->known, "") ? -1 : 1;
}

static int64_t do_lookup(struct lane *lane)
{
	return stat_of(lane->place->directory, "known") ? -1 : 1;
}

static int64_t do_missing(struct lane *lane)
{
	if (stat_of(lane->place->directory, "missing"))
		return errno == ENOENT ? 1 : -1;
	errno = EEXIST;
	return -1;
}

static int64_t do_statfs(struct lane *lane)
{
	struct statfs found;

	return fstatfs(lane->place->known, &found) ? -1 : 1;
}

static int64_t do_readlink(struct lane *lane)
{
	char target[PATH_MAX];

	return readlinkat(lane->place->link, "", target, sizeof(target)) < 0 ? -1 : 1;
}

static int64_t do_open(struct lane *lane)
{
	int fd = openat(lane->bare->proc, lane->place->path, O_RDONLY | O_CLOEXEC);

	return fd < 0 || close(fd) ? -1 : 1;
}

static int64_t do_opendir(struct lane *lane)
{
	int fd = openat(lane->place->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || close(fd) ? -1 : 1;
}

/* The inode of a new name, which the guest is told of; then the name goes, and the guest forgets it. */
static int told_and_forgotten(struct lane *lane, const char *name, int flags)
{
	int directory = lane->place->directory;
	int fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 || stat_of(fd, "") || unlinkat(directory, name, flags) || close(fd) ? -1 : 0;
}

static int64_t do_create(struct lane *lane)
{
	int directory = lane->place->directory;
	int file = openat(directory, "created", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int inode = openat(directory, "created", O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (file < 0 || inode < 0 || stat_of(inode, ""))
		return -1;
	if (pwrite(file, lane->buffer, DRIVER_PAGE, 0) != DRIVER_PAGE || close(file))
		return -1;
	return unlinkat(directory, "created", 0) || close(inode) ? -1 : 1;
}

static int64_t do_mkdir(struct lane *lane)
{
	return mkdirat(lane->place->directory, "made", 0755) || told_and_forgotten(lane, "made", AT_REMOVEDIR) ? -1 : 1;
}

static int64_t do_symlink(struct lane *lane)
{
	return symlinkat("target", lane->place->directory, "made") || told_and_forgotten(lane, "made", 0) ? -1 : 1;
}

static int64_t do_link(struct lane *lane)
{
	const struct bare_place *place = lane->place;

	if (linkat(lane->bare->proc, place->path, place->directory, "made", AT_SYMLINK_FOLLOW))
		return -1;
	return stat_of(place->known, "") || unlinkat(place->directory, "made", 0) ? -1 : 1;
}

/* There and back. */
static int64_t do_rename(struct lane *lane)
{
	int directory = lane->place->directory;

	if (renameat2(directory, "known", directory, "renamed", 0))
		return -1;
	return renameat2(directory, "renamed", directory, "known", 0) ? -1 : 2;
}

static int64_t do_chmod(struct lane *lane)
{
	struct bare_place *place = lane->place;
	mode_t mode = place->odd ? 0644 : 0600;

	place->odd = !place->odd;
	if (syscall(SYS_fchmodat2, place->known, "", mode, AT_EMPTY_PATH) &&
	    (errno != ENOSYS || fchmodat(lane->bare->proc, place->path, mode, 0)))
		return -1;
	return stat_of(place->known, "") ? -1 : 1;
}

static int64_t do_utimens(struct lane *lane)
{
	struct bare_place *place = lane->place;
	struct timespec times[2] = { { .tv_sec = 1 + place->odd }, { .tv_sec = 1 + place->odd } };

	place->odd = !place->odd;
	return utimensat(place->known, "", times, AT_EMPTY_PATH) || stat_of(place->known, "") ? -1 : 1;
}

/* The whole directory. */
static int64_t do_readdirplus(struct lane *lane)
{
	char entries[DRIVER_PAGE];
	const struct dirent64 *entry;
	int64_t units = 0;
	long got;

	if (lseek(lane->bare->many, 0, SEEK_SET))
		return -1;
	while ((got = getdents64(lane->bare->many, entries, sizeof(entries))) > 0)
		for (long at = 0; at < got; at += entry->d_reclen) {
			entry = (const void *)(entries + at);
			if (entry->d_name[0] == '.')
				continue;
			if (stat_of(lane->bare->many, entry->d_name))
				return -1;
			units++;
		}
	return got < 0 ? -1 : units;
}

/* Data. */

static int pages_of(const struct lane *lane, struct iovec *pages)
{
	int count = lane->bare->size / DRIVER_PAGE;

	for (int i = 0; i < count; i++)
		pages[i] = (struct iovec){ lane->buffer + (uint64_t)(count - 1 - i) * DRIVER_PAGE, DRIVER_PAGE };
	return count;
}

static uint64_t next_offset(struct lane *lane)
{
	struct bare_place *place = lane->place;
	uint64_t offset = place->offset;

	place->offset = driver_next(place->first, place->end, offset, lane->bare->size, lane->bare->random);
	return offset;
}

/* One, of an I/O that moved all it should. */
static int64_t whole(const struct lane *lane, ssize_t moved)
{
	if (moved >= 0 && moved != lane->bare->size)
		errno = EIO;
	return moved == lane->bare->size ? 1 : -1;
}

static int64_t do_read(struct lane *lane)
{
	struct iovec pages[PAGES];
	int count = pages_of(lane, pages);

	return whole(lane, preadv(lane->place->read, pages, count, next_offset(lane)));
}

static int64_t do_write(struct lane *lane)
{
	struct iovec pages[PAGES];
	int count = pages_of(lane, pages);

	return whole(lane, pwritev(lane->place->written, pages, count, next_offset(lane)));
}

static int64_t do_fsync(struct lane *lane)
{
	return do_write(lane) < 0 || fsync(lane->place->written) ? -1 : 1;
}

static const struct {
	const char *name;
	int64_t (*operation)(struct lane *lane);
} OPERATIONS[] = {
	{ "getattr", do_getattr }, { "lookup", do_lookup }, { "missing", do_missing }, { "statfs", do_statfs },
	{ "readlink", do_readlink }, { "open", do_open }, { "opendir", do_opendir }, { "create", do_create },
	{ "mkdir", do_mkdir }, { "symlink", do_symlink }, { "link", do_link }, { "rename", do_rename },
	{ "chmod", do_chmod }, { "utimens", do_utimens }, { "readdirplus", do_readdirplus }, { "read", do_read },
	{ "write", do_write }, { "fsync", do_fsync },
};

/* Goes round the places from `lane->place` on until the time is over. */
static void repeat(struct lane *lane, uint32_t places)
{
	struct bare_place *first = lane->place;
	int64_t units = 0;

	for (uint64_t done = 0;; done++) {
		if ((done % STRIDE == 0 || lane->bare->threads || lane->bare->size > DRIVER_PAGE) && lane->units &&
		    now(CLOCK_MONOTONIC) - lane->begun >= lane->bare->nanoseconds)
			break;
		lane->place = first + done % places;
		units = lane->operation(lane);
		if (units < 0) {
			lane->error = errno;
			break;
		}
		lane->units += units;
	}
}

static void *one_place(void *opaque)
{
	repeat(opaque, 1);
	return NULL;
}

static void in_threads(struct lane *lanes, uint32_t count)
{
	pthread_t *threads = calloc(count, sizeof(*threads));
	uint32_t begun = 0;

	for (; threads && begun < count; begun++)
		if (pthread_create(&threads[begun], NULL, one_place, &lanes[begun]))
			break;
	if (begun < count)
		lanes[0].error = ENOMEM;
	for (uint32_t i = 0; i < begun; i++)
		pthread_join(threads[i], NULL);
	free(threads);
}

static int run(struct bare *bare, int64_t (*operation)(struct lane *lane))
{
	uint32_t count = bare->threads ? bare->depth : 1;
	struct lane *lanes = calloc(count, sizeof(*lanes));
	char *buffers = aligned_alloc(DRIVER_PAGE, (uint64_t)count * PAGES * DRIVER_PAGE);
	uint64_t begun = now(CLOCK_MONOTONIC), used = now(CLOCK_PROCESS_CPUTIME_ID);
	int error = lanes && buffers ? 0 : ENOMEM;

	for (uint32_t i = 0; !error && i < count; i++)
		lanes[i] = (struct lane){ bare, &bare->places[i], buffers + (uint64_t)i * PAGES * DRIVER_PAGE,
					  operation, begun, 0, 0 };
	if (!error && bare->threads)
		in_threads(lanes, count);
	else if (!error)
		repeat(&lanes[0], bare->depth);
	bare->elapsed = now(CLOCK_MONOTONIC) - begun;
	bare->used = now(CLOCK_PROCESS_CPUTIME_ID) - used;
	bare->units = 0;
	for (uint32_t i = 0; lanes && i < count; i++) {
		bare->units += lanes[i].units;
		error = error ? error : lanes[i].error;
	}
	free(buffers);
	free(lanes);
	return -error;
}

int bare_run(struct bare *bare, const char *name)
{
	for (unsigned i = 0; i < sizeof(OPERATIONS) / sizeof(OPERATIONS[0]); i++)
		if (!strcmp(OPERATIONS[i].name, name))
			return run(bare, OPERATIONS[i].operation);
	return -EINVAL;
}
