/* The driver's side of a virtio-fs device, as fast as a guest's: lanes of FUSE requests over a split ring.
 *
 * A lane is one of the guest's processes: it repeats a list of steps, one request after the other, and keeps what the
 * replies say (nodeids, handles) in registers. So many lanes are so many requests in flight.
 *
 * Rule 1. A request is enqueued and announced as Linux's virtio_fs does it: an indirect table where that was agreed, one
 *         look at avail_event for each request; all that is used is reaped at each wake-up, with interrupts off.
 * Rule 2. Every reply is checked: what is used but was not asked for, its length, unique, error, and of data the first
 *         eight bytes of each page, or every byte.
 * Rule 3. Tables, requests and replies lie in guest memory, made beforehand: what it costs a guest to make them is not
 *         measured.
 * Rule 4. What has no reply, FORGETs, is not waited for: a copy is sent, until there are DRIVER_PLACES of them in flight.
 */
#ifndef BENCH_DRIVER_H
#define BENCH_DRIVER_H

#include <stdint.h>

#define DRIVER_PAGE 4096
#define DRIVER_MAX_SIZE 1024
#define DRIVER_LATENCIES 640
/* For requests without a reply, each with its descriptor: as many as a ring holds. What one of them takes, in bytes, no power
 * of two: all would be at the same few places of a cache. */
#define DRIVER_PLACES 1024
#define DRIVER_PLACE (16384 + 64)

/* What is done to a 64-bit field at a guest address: set before the request is sent; or, of the reply, kept or compared. */
#define DRIVER_PUT 1
#define DRIVER_TAKE 2
#define DRIVER_MATCH 3
#define DRIVER_LOOK 4      /* taken and, if it is a nodeid, counted */
#define DRIVER_COUNT 5     /* so often it was counted is put, and is nothing from then on */

/* What a request moves besides its arguments. */
#define DRIVER_READ 1      /* pages of the lane's file, from its offset */
#define DRIVER_WRITE 2
#define DRIVER_ENTRIES 3   /* a page of struct fuse_direntplus, read on where the last one ended */
#define DRIVER_ANY_READ 4  /* pages that nobody looks at */
#define DRIVER_ANY_WRITE 5

/* What was wrong with a reply. */
#define DRIVER_RING 1      /* a used element that is no request in flight */
#define DRIVER_USED 2      /* the used length is not the header's */
#define DRIVER_LENGTH 3
#define DRIVER_UNIQUE 4
#define DRIVER_ERROR 5
#define DRIVER_REGISTER 6
#define DRIVER_DATA 7
#define DRIVER_NUMBER 8    /* of a directory's entries */

struct driver_patch {
	uint64_t addr;
	uint32_t kind;       /* DRIVER_PUT, TAKE, MATCH, LOOK or COUNT */
	uint32_t reg;
};

/* A directory's entry whose nodeid is kept. */
struct driver_name {
	const char *name;
	uint32_t length;
	uint32_t reg;
};

/* One request, as it lies in guest memory. All addresses are guest physical ones. */
struct driver_step {
	uint64_t table;      /* its descriptors, in order and chained, as in an indirect table */
	uint32_t descriptors;
	uint32_t first_page; /* the descriptor of its first page of data */
	uint64_t request;    /* struct fuse_in_header */
	uint64_t reply;      /* struct fuse_out_header; 0: none is wanted, and it goes to the hiprio queue */
	uint32_t length;     /* bytes the reply must have, its header included */
	int32_t error;       /* that the reply must carry */
	uint32_t units;      /* what the reply counts for; DRIVER_ENTRIES: each entry is one, but of a `whole` one */
	uint32_t data;       /* DRIVER_READ, WRITE, ENTRIES, ANY_READ or ANY_WRITE; 0: none */
	uint64_t offset;     /* where the request says the offset (64 bits); 0: nowhere */
	uint32_t size;       /* of the data, in bytes; READ and WRITE: whole pages */
	uint32_t entries;    /* DRIVER_ENTRIES: so many are in the directory, besides "." and ".."; */
	uint32_t whole;      /* 1: the request is repeated until there are no more */
	uint32_t name_count;
	const struct driver_name *names; /* in order */
	uint32_t unless_reg; /* not sent when this register has */
	uint64_t unless_mask;/* any of these bits; it counts as sent */
	uint32_t patch_count;
	const struct driver_patch *patches;
};

/* What is set besides `steps` and `count` is where it begins; it goes on from there in the next run. */
struct driver_lane {
	const struct driver_step *steps;
	uint32_t count;
	uint32_t at;         /* the next step, or the one in flight */
	uint64_t *registers;
	uint64_t *counts;    /* by register: lookups of the nodeid in it that were not forgotten */
	uint64_t unique;     /* of the request in flight */
	uint64_t offset;     /* the next request with data begins there: */
	uint64_t first;      /* from this byte of the file on, */
	uint64_t end;        /* and before this one, when it begins at `first` again */
	uint64_t last;       /* where the last request with data began */
	uint32_t random;     /* 1: in the order of driver_next */
	uint32_t entries;    /* seen since the directory's begin */
	uint32_t sent;       /* requests, in this run */
	uint32_t in_flight;  /* 1: a reply is awaited */
	uint32_t timed;      /* 1: its requests count in `latencies` */
	uint64_t sent_at;    /* nanoseconds of CLOCK_MONOTONIC, where latencies are kept */
};

/* One ring. Between two runs nothing is in flight, and any other driver may use it, if it keeps `index`. */
struct driver_queue {
	char *memory;        /* where guest address 0 is mapped; one region */
	uint64_t desc;       /* guest addresses */
	uint64_t avail;
	uint64_t used;
	uint32_t num;        /* power of two, 1 to DRIVER_MAX_SIZE */
	uint32_t event_idx;
	uint32_t indirect;
	int32_t kick;        /* eventfds, of which `call` blocks */
	int32_t call;
	uint16_t index;      /* of the available and the used ring */
	uint16_t kicked;     /* available index when the device was last told, or found to need no telling */
	uint16_t last_used;
	uint16_t free_count;
	uint16_t free[1024];      /* heads and other descriptors: a stack (DRIVER_MAX_SIZE) */
	uint16_t taken[1024];     /* by head: descriptors of the ring it takes; 0: not in flight */
	uint32_t lane[1024];      /* by head; or, in the hiprio queue, the place */
};

struct driver_run {
	struct driver_queue *hiprio;
	struct driver_queue *requests; /* `queues` of them, which have one `call`: a lane's requests go to one */
	uint32_t queues;
	struct driver_lane *lanes;
	uint32_t depth;           /* lanes */
	uint32_t spin;            /* 1: watches the used index; 0: sleeps until there is an interrupt */
	uint32_t trusting;        /* 1: replies have no content (tests/bench/alone.py): their header is checked only */
	uint32_t limit;           /* each lane sends so many requests and stops where it is; 0: as many as there is time for */
	uint64_t nanoseconds;     /* after so long each lane goes to the end of its list and stops, if anything was counted */
	const char *content;      /* DRIVER_READ: what the file holds, to compare every byte; NULL: the first eight of a page */
	uint64_t *latencies;      /* of DRIVER_LATENCIES ranges of time (driver_range): replies that took so long; or NULL */
	uint64_t places;          /* guest address of DRIVER_PLACES times DRIVER_PLACE bytes */
	uint32_t spare_count;     /* of these places, those that are not in flight, */
	uint16_t spare[1024];     /* the last one first (DRIVER_PLACES) */
	uint64_t unique;          /* the last one given away; even */
	uint64_t begun;           /* when it began, nanoseconds of CLOCK_MONOTONIC; 0: not yet */
	uint32_t busy;            /* lanes that have a request in flight */
	uint64_t elapsed;         /* nanoseconds, from the first request to the last reply */
	uint64_t units;
	uint32_t failure;         /* DRIVER_*: what was wrong, */
	uint32_t failed_lane;     /* with whom, */
	uint32_t failed_step;
	int64_t expected;         /* and what it was */
	int64_t got;
};

/* The eight bytes each page of a file begins with: its number, and who wrote it: 0, or the unique of a request. */
uint64_t driver_stamp(uint64_t page, uint64_t unique);

/* Where the data after those at `offset` are, of requests of `size` bytes in this part of a file. At random: of the
 * greatest power of two that has room each block once, before any a second time. */
uint64_t driver_next(uint64_t first, uint64_t end, uint64_t offset, uint64_t size, uint32_t random);

/* Where a time in nanoseconds counts: each range is a sixteenth of its lower end wide, or one nanosecond. */
uint32_t driver_range(uint64_t nanoseconds);

/* 0 when all lanes have stopped; -EBADMSG for a bad reply, -E2BIG for what no place has room for, -ENOSPC when there are
 * more lanes than the ring has room for (then the rings are not usable any more); -EINTR when a signal came while it
 * waited, or might have come while it span: call again to go on. */
int driver_run(struct driver_run *run);

#endif
