/* How long a chain takes the only thread of a ring, and so how many are to be left when its driver is told of others.
 *
 * Rule 1. Pure: times are told, nothing is asked of the system, and nothing is kept but the struct.
 * Rule 2. What is left is to take about as long as the driver takes to wake, so that neither waits for the other.
 * Rule 3. Chains that last are told of at once: more with them would gain little, and their driver wait long.
 */
#ifndef VHOST_PACE_H
#define VHOST_PACE_H

#include <stdint.h>

/* Of what a driver with a core of its own takes to wake, the part that is worth serving chains in, nanoseconds: half of it
 * across the cores of a virtual machine (polling.c). */
#define PACE_WAKING 8000
/* Chains that are served in it, when it is not known how long one takes. */
#define PACE_LEFT 8
/* Nanoseconds a chain takes that is told of at once. Two of 20 us told of together still take 8 % less CPU time than each by
 * itself. */
#define PACE_LONG 30000
/* One that takes longer counts for no more nanoseconds. */
#define PACE_MOST 40000
/* pace_left's, where no number of them will do. */
#define PACE_NONE 65535

/* Times in nanoseconds. One is all zeroes. */
struct pace {
	uint32_t chain; /* what one took lately, averaged over some spells, at most PACE_MOST; 0: not known */
	uint16_t from;  /* chains there had been when this spell began */
	uint64_t since; /* when that was; 0: not known */
};

/* The ring has run dry no more, or is dry again, and so many chains have been taken from it, modulo 65536. */
void pace_begin(struct pace *pace, uint64_t now, uint16_t taken);
void pace_end(struct pace *pace, uint64_t now, uint16_t taken);
/* So many chains, one at least, took so long. */
void pace_learn(struct pace *pace, uint64_t span, uint32_t chains);
/* How many chains are to be left: one at least. */
uint32_t pace_left(const struct pace *pace);

#endif
