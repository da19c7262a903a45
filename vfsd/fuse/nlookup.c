/* The guest's count of an inode, which each request changes exactly once.
 *
 * Rule 1. A request that may be found in flight has a memo, and its memo says how many changes it has made (`steps`).
 *         Both change as one: the arena holds what they were until both are what they will be, so that a worker that
 *         finds the one without the other puts both back.
 * Rule 2. What a request told the guest of, and was never sent, is taken back: the guest will not forget it.
 */
#include "inode.h"

#include "barrier.h"

/* Inodes of which a memo and its page have room for. */
#define TOLD_MAX (MEMO_TOLD + MEMO_PAGE)

struct page {
	uint32_t told[MEMO_PAGE];
};

/* Each memo has a page, and all of them lie behind all memos. */
static uint64_t memo_count(const struct core_config *config)
{
	return config->memos ? config->memos_size / (sizeof(struct memo) + sizeof(struct page)) : 0;
}

static uint32_t *told(struct core *core, struct memo *memo, uint32_t index)
{
	struct memo *memos = core->config.memos;
	struct page *pages = (struct page *)(memos + memo_count(&core->config));

	return index < MEMO_TOLD ? &memo->told[index] : &pages[memo - memos].told[index - MEMO_TOLD];
}

/* Locked. Without a memo nobody looks for the request again. */
static void change(struct core *core, uint32_t slot, uint64_t nlookup, struct memo *memo, uint32_t steps)
{
	struct inode_header *header = (struct inode_header *)core->inodes.header;
	struct inode_record *record = inode_record(core, slot);

	if (!memo) {
		record->nlookup = nlookup;
		return;
	}
	header->change_nlookup = record->nlookup;
	header->change_slot = slot;
	header->change_memo = memo - (struct memo *)core->config.memos;
	header->change_steps = memo->steps;
	ordered();
	header->changing = 1;
	ordered();
	record->nlookup = nlookup;
	memo->steps = steps;
	ordered();
	header->changing = 0;
	ordered();
}

void nlookup_recover(const struct core_config *config)
{
	struct inode_header *header = config->inodes;
	struct inode_record *record = (struct inode_record *)header + header->change_slot;
	struct memo *memo = (struct memo *)config->memos + header->change_memo;

	if (header->changing != 1)
		return;
	if (header->change_slot >= FUSE_ROOT_ID && header->change_slot < config->inodes_size / sizeof(*record) &&
	    header->change_memo < memo_count(config)) {
		record->nlookup = header->change_nlookup;
		memo->steps = header->change_steps;
	}
	ordered();
	header->changing = 0;
}

bool nlookup_tell(struct core *core, uint32_t slot)
{
	struct inode_record *record = inode_record(core, slot);
	struct memo *memo = memo_current();
	uint32_t steps = memo ? memo->steps : 0;

	if (memo && steps >= TOLD_MAX)
		return false;
	if (memo)
		*told(core, memo, steps) = slot;
	if (record->nlookup == 0)
		core->inodes.private[slot].refs++;
	change(core, slot, record->nlookup + (record->nlookup < UINT64_MAX), memo, steps + 1);
	return true;
}

/* Locked: takes `nlookup` from a record the guest knows. */
static void take(struct core *core, uint32_t slot, uint64_t nlookup, struct memo *memo, uint32_t steps,
		 struct loose *loose)
{
	struct inode_record *record = inode_record(core, slot);

	change(core, slot, record->nlookup - nlookup, memo, steps);
	if (record->nlookup == 0) {
		core->inodes.private[slot].refs--;
		inode_settle(core, slot, loose);
	}
}

static struct inode_record *known(struct core *core, uint64_t nodeid, uint32_t *slot)
{
	struct inode_record *record = inode_at(core, nodeid, slot);

	return record && record->nlookup ? record : NULL;
}

void nlookup_forget(struct core *core, uint64_t nodeid, uint64_t nlookup, struct memo *memo, uint32_t steps)
{
	struct inode_record *record;
	struct loose loose = {0};
	uint32_t slot;

	if (nodeid == FUSE_ROOT_ID || nlookup == 0)
		return;
	pthread_mutex_lock(&core->inodes.lock);
	record = known(core, nodeid, &slot);
	if (record && nlookup >= record->nlookup && read_once(&core->locks.count)) {
		/* A lock that nobody can name any more is in everybody's way. First, since it is found by its inode. */
		pthread_mutex_unlock(&core->inodes.lock);
		lock_release_handle(core, nodeid, EVERY_HANDLE);
		pthread_mutex_lock(&core->inodes.lock);
		record = known(core, nodeid, &slot);
	}
	if (record)
		take(core, slot, nlookup < record->nlookup ? nlookup : record->nlookup, memo, steps, &loose);
	pthread_mutex_unlock(&core->inodes.lock);
	loose_close(&loose);
}

/* Locked: the nodeid of what a memo has told of last. 0 where nothing is to be taken back. */
static uint64_t last_told(struct core *core, struct memo *memo)
{
	uint32_t slot = memo->steps && memo->steps <= TOLD_MAX ? *told(core, memo, memo->steps - 1) : 0;

	return slot >= INODE_FIRST && slot < core->inodes.high ? slots_id(&core->inodes, slot) : 0;
}

void nlookup_take_back(struct core *core, struct memo *memo)
{
	if (memo->steps > TOLD_MAX)
		memo->steps = 0;
	while (memo->steps) {
		uint32_t left = memo->steps - 1;
		uint64_t nodeid;

		pthread_mutex_lock(&core->inodes.lock);
		nodeid = last_told(core, memo);
		pthread_mutex_unlock(&core->inodes.lock);
		if (nodeid)
			nlookup_forget(core, nodeid, 1, memo, left);
		/* Where there was nothing to take from. */
		memo->steps = left;
	}
}

void inode_forget(struct core *core, uint64_t nodeid, uint64_t nlookup)
{
	struct memo *memo = memo_current();
	bool ours;

	pthread_mutex_lock(&core->inodes.lock);
	ours = memo && nlookup == 1 && last_told(core, memo) == nodeid;
	pthread_mutex_unlock(&core->inodes.lock);
	nlookup_forget(core, nodeid, nlookup, ours ? memo : NULL, ours ? memo->steps - 1 : 0);
}
