/* When to watch a dry ring (polling.h has the rules). */
#include "polling.h"

/* A sleeper hears of the driver so much later, in parts of the limit, that what was slept through may have been caught
 * (measured across the cores of a virtual machine: 10 to 40 microseconds). */
#define WAKING 2
/* What is watched beyond the average spell, nanoseconds. */
#define MARGIN 2000

static uint32_t spell_most(const struct polling *polling)
{
	return 8 * polling->limit;
}

static void learn(struct polling *polling, uint64_t spell)
{
	uint32_t most = spell_most(polling);
	uint32_t last = spell < most ? (uint32_t)spell : most;

	polling->spell = polling->spell ? polling->spell / 2 + last / 2 + 1 : most;
}

uint32_t polling_begin(struct polling *polling)
{
	uint32_t span;

	if (!polling->limit || !polling->spell || polling->spell > WAKING * polling->limit)
		return 0;
	if (polling->skip) {
		polling->skip--;
		return 0;
	}
	span = 2 * polling->spell + MARGIN;
	return span < polling->limit ? span : polling->limit;
}

void polling_paid(struct polling *polling, uint64_t spell)
{
	polling->backoff /= 2;
	learn(polling, spell);
}

void polling_failed(struct polling *polling)
{
	polling->backoff = 2 * polling->backoff + 1;
	if (polling->backoff > POLLING_REST)
		polling->backoff = POLLING_REST;
	polling->skip = polling->backoff;
}

void polling_slept(struct polling *polling, uint64_t spell)
{
	learn(polling, spell);
}
