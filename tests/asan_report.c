/* Preloaded by scripts/sanitize: keeps every AddressSanitizer report, also one of a process that can no longer open a file.
 *
 * A worker lives in a sandbox without the host's paths, its stderr may be a test's pipe, and its death is repaired without
 * notice. So each process opens its file in $VFSD_REPORTS when it starts, before any sandbox, and forked processes
 * share it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void __asan_set_error_report_callback(void (*callback)(const char *));

static int report_fd = -1;

static void keep(const char *report)
{
	if (write(report_fd, report, strlen(report)) < 0)
		_exit(99);
}

__attribute__((constructor)) static void open_report(void)
{
	const char *directory = getenv("VFSD_REPORTS");
	char path[4096];

	if (!directory)
		return;
	snprintf(path, sizeof(path), "%s/%d", directory, (int)getpid());
	report_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (report_fd < 0)
		return;
	/* Out of the way of tests that count on low numbers, and unlinked nowhere: an empty file is no report. */
	int high = fcntl(report_fd, F_DUPFD_CLOEXEC, 900);
	if (high >= 0) {
		close(report_fd);
		report_fd = high;
	}
	__asan_set_error_report_callback(keep);
}
