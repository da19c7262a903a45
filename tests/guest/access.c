/* Accesses to a file in 4 KiB pieces, timed: access WAY ORDER LIMIT FILE...
 *
 * WAY is read, write, map-read or map-write. ORDER is once (from the start to the end, file after file), twice (of which
 * only the second pass counts), random (over all files) or each (opens, reads and closes each in turn). LIMIT is in
 * seconds. Prints: pieces (each: files), seconds, and the bytes by which free memory has shrunk while the files are
 * still open.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PIECE 4096

struct file {
	int fd;
	char *map; /* NULL: not by mmap */
	size_t pieces;
};

static bool writes, maps;
static char piece[PIECE];
static volatile uint64_t sum;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static long memory_free(void)
{
	long kilobytes = 0;
	char line[128];
	FILE *file = fopen("/proc/meminfo", "r");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemFree: %ld", &kilobytes) == 1)
			break;
	if (file)
		fclose(file);
	return kilobytes << 10;
}

static void open_file(struct file *file, const char *name)
{
	struct stat stat;

	file->fd = open(name, writes ? O_RDWR : O_RDONLY);
	if (file->fd < 0 || fstat(file->fd, &stat) < 0)
		err(1, "%s", name);
	file->pieces = stat.st_size / PIECE;
	file->map = NULL;
	if (!maps)
		return;
	file->map = mmap(NULL, stat.st_size, writes ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file->fd, 0);
	if (file->map == MAP_FAILED)
		err(1, "mmap");
}

static void close_file(struct file *file)
{
	if (file->map)
		munmap(file->map, file->pieces * PIECE);
	close(file->fd);
}

static void touch(struct file *file, size_t number)
{
	off_t offset = (off_t)number * PIECE;
	ssize_t done = PIECE;

	if (maps && writes)
		memcpy(file->map + offset, piece, PIECE);
	else if (maps)
		memcpy(piece, file->map + offset, PIECE);
	else if (writes)
		done = pwrite(file->fd, piece, PIECE, offset);
	else
		done = pread(file->fd, piece, PIECE, offset);
	if (done != PIECE)
		err(1, "%zd instead of %d bytes", done, PIECE);
	sum += piece[number % PIECE];
}

static void settle(struct file *files, int count)
{
	if (writes)
		for (int i = 0; i < count; i++)
			if (maps ? msync(files[i].map, files[i].pieces * PIECE, MS_SYNC) : fsync(files[i].fd))
				err(1, "not on the disk");
}

static long in_order(struct file *files, int count, double end)
{
	long done = 0;

	for (int i = 0; i < count; i++)
		for (size_t number = 0; number < files[i].pieces; number++, done++) {
			if (done % 16 == 0 && now() >= end)
				return done;
			touch(&files[i], number);
		}
	return done;
}

static long at_random(struct file *files, int count, double end)
{
	long done;

	srandom(1);
	for (done = 0; done % 4 || now() < end; done++) {
		struct file *file = &files[random() % count];

		touch(file, random() % file->pieces);
	}
	return done;
}

static long one_by_one(char **names, int count, double end)
{
	long done;

	for (done = 0; done < count && now() < end; done++) {
		struct file file;

		open_file(&file, names[done]);
		for (size_t number = 0; number < file.pieces; number++)
			touch(&file, number);
		close_file(&file);
	}
	return done;
}

int main(int argc, char **argv)
{
	const char *order = argc > 4 ? argv[2] : "";
	int count = argc - 4;
	struct file *files = calloc(count > 0 ? count : 1, sizeof(*files));
	double begin, limit, took;
	long done, before;

	if (argc < 5)
		errx(2, "access WAY ORDER LIMIT FILE...");
	maps = strncmp(argv[1], "map-", 4) == 0;
	writes = strstr(argv[1], "write") != NULL;
	limit = atof(argv[3]);
	before = memory_free();
	if (strcmp(order, "each") == 0) {
		begin = now();
		done = one_by_one(argv + 4, count, begin + limit);
	} else {
		for (int i = 0; i < count; i++)
			open_file(&files[i], argv[4 + i]);
		begin = now();
		if (strcmp(order, "random") == 0) {
			done = at_random(files, count, begin + limit);
		} else {
			done = in_order(files, count, begin + limit);
			if (strcmp(order, "twice") == 0) {
				settle(files, count);
				begin = now();
				done = in_order(files, count, begin + limit);
			}
		}
		settle(files, count);
	}
	took = now() - begin;
	printf("%ld %.6f %ld\n", done, took, before - memory_free());
	return 0;
}
