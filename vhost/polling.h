/* Whether to watch a dry ring for a moment before sleeping, learned from what dry spells came to.
 *
 * Watching spares both sides a system call and two a wake-up, but it takes a core that others may want: the driver
 * itself, where it shares ours.
 *
 * Rule 1. Pure: times are told, nothing is asked of the system, and nothing is kept but the struct.
 * Rule 2. A dry spell is watched for `limit` at most, and the next one may be watched only after something came: an idle
 *         ring costs nothing.
 * Rule 3. Spells that were watched in vain are paid for in advance of the next: each doubles how many are slept through
 *         first, up to POLLING_REST. So what is wasted on a driver that can't be caught is a small part of what it costs
 *         anyway.
 */
#ifndef VHOST_POLLING_H
#define VHOST_POLLING_H

#include <stdint.h>

/* A ring is never watched for longer at once, nanoseconds. */
#define POLLING_MAX 50000
/* Dry spells slept through at most between two that are watched. */
#define POLLING_REST 4095
/* Nothing else may happen for so long between two looks, nanoseconds: somebody wanted our core, and got it. */
#define POLLING_DISTURBED 15000

/* All times in nanoseconds. One is all zeroes but for `limit`. */
struct polling {
	uint32_t limit;   /* at most POLLING_MAX; 0: never watch */
	uint32_t spell;   /* what dry spells took lately, waking included, averaged over two or three; 0: not known */
	uint32_t skip;    /* spells yet to be slept through */
	uint32_t backoff; /* spells to be slept through after the next one that was watched in vain */
};

/* A spell begins: how long to watch it, 0 for not at all. */
uint32_t polling_begin(struct polling *polling);
/* One that was watched ended so, after so long: the driver came, undisturbed; or it did not, or took our core to come. */
void polling_paid(struct polling *polling, uint64_t spell);
void polling_failed(struct polling *polling);
/* One that was slept through, or its rest, ended: so long after it began. */
void polling_slept(struct polling *polling, uint64_t spell);

#endif
