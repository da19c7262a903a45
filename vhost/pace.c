/* How long chains take (pace.h has the rules). */
#include "pace.h"

void pace_learn(struct pace *pace, uint64_t span, uint32_t chains)
{
	uint64_t each = span / chains;
	uint32_t last = each < PACE_MOST ? (uint32_t)each : PACE_MOST;

	pace->chain = pace->chain ? (3 * pace->chain + last) / 4 : last;
}

void pace_begin(struct pace *pace, uint64_t now, uint16_t taken)
{
	pace->since = now;
	pace->from = taken;
}

void pace_end(struct pace *pace, uint64_t now, uint16_t taken)
{
	uint16_t chains = taken - pace->from;

	if (chains && pace->since)
		pace_learn(pace, now - pace->since, chains);
	pace->since = 0;
}

uint32_t pace_left(const struct pace *pace)
{
	if (!pace->chain)
		return PACE_LEFT;
	if (pace->chain >= PACE_LONG)
		return PACE_NONE;
	return pace->chain < PACE_WAKING ? PACE_WAKING / pace->chain : 1;
}
