/* Works in the current directory of a guest while that moves, with files it holds open all the time, and compares all it
 * reads with what it should be: until there is a file "end". Then it prints a checksum of each file, as cksum(1) would.
 * Linked statically, since it runs in a guest without libraries. The first thing that is not as it should be ends it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 16
#define SIZE (256 << 10)
#define ENTRIES 300

static uint8_t model[FILES][SIZE];
static int fds[FILES];
static uint8_t *mapped;   /* of the first file */
static DIR *listing;
static uint64_t turns;

static void fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	printf("turn %llu: ", (unsigned long long)turns);
	vprintf(format, arguments);
	printf(": %s\n", strerror(error));
	va_end(arguments);
	exit(1);
}

static uint32_t dice(void)
{
	static uint64_t state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static void write_some(int number)
{
	uint32_t offset = dice() % (SIZE - 5000), length = 1 + dice() % 5000, i;

	for (i = 0; i < length; i++)
		model[number][offset + i] = dice();
	if (pwrite(fds[number], model[number] + offset, length, offset) != length)
		fail("pwrite %d", number);
}

static void read_some(int number)
{
	uint32_t offset = dice() % (SIZE - 5000), length = 1 + dice() % 5000;
	uint8_t data[5000];

	if (dice() % 8 == 0 && posix_fadvise(fds[number], 0, 0, POSIX_FADV_DONTNEED))
		fail("fadvise %d", number);
	if (pread(fds[number], data, length, offset) != length)
		fail("pread %d", number);
	errno = 0;
	if (memcmp(data, model[number] + offset, length))
		fail("file %d differs at %u", number, offset);
}

static void touch_mapping(void)
{
	uint32_t offset = dice() % SIZE;

	errno = 0;
	if (mapped[offset] != model[0][offset])
		fail("the mapping differs at %u", offset);
	mapped[offset] = model[0][offset] = dice();
}

/* Names that come and go. */
static void change_names(void)
{
	struct stat stat;
	int fd;

	if (mkdir("passing", 0755) || rename("passing", "other") || rmdir("other"))
		fail("directory");
	fd = open("made", O_CREAT | O_EXCL | O_RDWR, 0644);
	if (fd < 0 || write(fd, "x", 1) != 1 || fstat(fd, &stat) || stat.st_size != 1 || close(fd) || unlink("made"))
		fail("file");
}

/* One entry more of a listing that is always under way. */
static void list(void)
{
	static int seen;

	errno = 0;
	if (readdir(listing)) {
		seen++;
		return;
	}
	if (errno || seen != ENTRIES + 2)
		fail("%d entries", seen);
	seen = 0;
	rewinddir(listing);
}

static void set_up(void)
{
	struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 10};
	char name[32];
	int i, fd;

	if (mkdir("many", 0755))
		fail("mkdir");
	for (i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof(name), "many/%d", i);
		fd = open(name, O_CREAT | O_WRONLY, 0644);
		if (fd < 0 || close(fd))
			fail("%s", name);
	}
	listing = opendir("many");
	for (i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "file%d", i);
		fds[i] = open(name, O_CREAT | O_RDWR, 0644);
		if (fds[i] < 0 || ftruncate(fds[i], SIZE))
			fail("%s", name);
	}
	mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	if (!listing || mapped == MAP_FAILED || fcntl(fds[1], F_SETLK, &lock) || flock(fds[2], LOCK_EX))
		fail("set-up");
}

static void print_sums(void)
{
	int number, i;

	for (number = 0; number < FILES; number++) {
		uint32_t sum = 2166136261U;

		for (i = 0; i < SIZE; i++)
			sum = (sum ^ model[number][i]) * 16777619U;
		printf("%08x\n", sum);
		if (fsync(fds[number]))
			fail("fsync %d", number);
	}
}

int main(void)
{
	int fd;

	set_up();
	fd = open("begun", O_CREAT | O_WRONLY, 0644);
	if (fd < 0 || close(fd))
		fail("begun");
	for (; turns % 64 || access("end", F_OK); turns++) {
		int number = dice() % FILES;

		switch (dice() % 8) {
		case 0: case 1: case 2:
			write_some(number);
			break;
		case 3: case 4:
			read_some(number);
			break;
		case 5:
			touch_mapping();
			break;
		case 6:
			list();
			break;
		default:
			change_names();
		}
	}
	print_sums();
	printf("turns %llu\n", (unsigned long long)turns);
	return 0;
}
