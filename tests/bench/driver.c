/* The lanes of driver.h, which has the rules. */
#include "driver.h"

#include <errno.h>
#include <linux/fuse.h>
#include <string.h>

#include "clock.h"
#include "ring.h"

uint32_t driver_range(uint64_t nanoseconds)
{
	uint32_t top, range;

	if (nanoseconds < 16)
		return nanoseconds;
	top = 63 - __builtin_clzll(nanoseconds);
	range = (top - 3) * 16 + (nanoseconds >> (top - 4) & 15);
	return range < DRIVER_LATENCIES ? range : DRIVER_LATENCIES - 1;
}

static struct driver_queue *queue_of(const struct driver_run *run, uint32_t lane)
{
	return &run->requests[lane % run->queues];
}

static int reap_hiprio(struct driver_run *run)
{
	uint32_t place = 0, len = 0;
	int taken;

	while ((taken = ring_take(run->hiprio, &place, &len)) > 0)
		run->spare[run->spare_count++] = place;
	/* Linux has its interrupts on there, too. */
	ring_want_interrupt(run->hiprio, true);
	return taken < 0 ? failed(run, 0, DRIVER_RING, 0, 0) : 0;
}

/* Returns when so many places are ours. */
static int await_places(struct driver_run *run, uint32_t count)
{
	int ret = reap_hiprio(run);

	while (!ret && run->spare_count < count) {
		ret = ring_wait(run->hiprio, 1, run->spin);
		if (!ret)
			ret = reap_hiprio(run);
	}
	return ret;
}

/* Sends a copy, so that the lane may go on. */
static int send_unreplied(struct driver_run *run, const struct driver_step *step)
{
	const struct vring_desc *original = at(run->hiprio, step->table);
	struct driver_step copy = {.descriptors = 1};
	struct vring_desc *table;
	uint32_t place;
	int ret = await_places(run, 1);

	if (ret)
		return ret;
	if (original->len > DRIVER_PLACE - sizeof(*table))
		return -E2BIG;
	place = run->spare[--run->spare_count];
	copy.table = run->places + (uint64_t)place * DRIVER_PLACE;
	table = at(run->hiprio, copy.table);
	*table = *original;
	table->addr = copy.table + sizeof(*table);
	memcpy(at(run->hiprio, table->addr), at(run->hiprio, original->addr), original->len);
	return ring_enqueue(run->hiprio, &copy, place);
}

static void put(const struct driver_run *run, struct driver_lane *lane, const struct driver_patch *patch)
{
	if (patch->kind == DRIVER_PUT) {
		memcpy(at(run->requests, patch->addr), &lane->registers[patch->reg], sizeof(uint64_t));
	} else if (patch->kind == DRIVER_COUNT) {
		memcpy(at(run->requests, patch->addr), &lane->counts[patch->reg], sizeof(uint64_t));
		lane->counts[patch->reg] = 0;
	}
}

static int send_step(struct driver_run *run, uint32_t number, const struct driver_step *step)
{
	struct driver_lane *lane = &run->lanes[number];
	struct fuse_in_header *request = at(run->requests, step->request);

	lane->unique = request->unique = run->unique += 2;
	for (const struct driver_patch *patch = step->patches; patch < step->patches + step->patch_count; patch++)
		put(run, lane, patch);
	if (step->offset)
		memcpy(at(run->requests, step->offset), &lane->offset, sizeof(lane->offset));
	if (step->data)
		reply_prepare(run, lane, step);
	lane->sent++;
	if (!step->reply)
		return send_unreplied(run, step);
	memset(at(run->requests, step->reply), 0, sizeof(struct fuse_out_header));
	if (run->latencies)
		lane->sent_at = clock_ns();
	return ring_enqueue(queue_of(run, number), step, number);
}

static bool has_to_stop(const struct driver_run *run, const struct driver_lane *lane)
{
	if (run->limit)
		return lane->sent == run->limit;
	return lane->at == 0 && run->units && clock_ns() - run->begun >= run->nanoseconds;
}

/* Sends what the lane sends before it waits again, or stops it. */
static int go_on(struct driver_run *run, uint32_t number)
{
	struct driver_lane *lane = &run->lanes[number];
	const struct driver_step *step;
	int ret;

	for (; !has_to_stop(run, lane); lane->at = (lane->at + 1) % lane->count) {
		step = &lane->steps[lane->at];
		if (step->unless_mask & lane->registers[step->unless_reg]) {
			lane->sent++;
			continue;
		}
		ret = send_step(run, number, step);
		if (ret)
			return ret;
		if (step->reply) {
			lane->in_flight = 1;
			run->busy++;
			return 0;
		}
	}
	return 0;
}

static int answered(struct driver_run *run, uint32_t number, uint32_t len)
{
	struct driver_lane *lane = &run->lanes[number];
	int ret;

	if (run->latencies && lane->timed)
		run->latencies[driver_range(clock_ns() - lane->sent_at)]++;
	ret = reply_take(run, number, len);
	if (ret)
		return ret;
	lane->in_flight = 0;
	run->busy--;
	run->units += lane->steps[lane->at].units;
	if (!lane->steps[lane->at].whole || len <= sizeof(struct fuse_out_header) || run->trusting)
		lane->at = (lane->at + 1) % lane->count;
	return go_on(run, number);
}

static int reap(struct driver_run *run, struct driver_queue *queue)
{
	uint32_t lane = 0, len = 0;
	int ret = 0, taken = 0;

	while (!ret && (taken = ring_take(queue, &lane, &len)) > 0)
		ret = answered(run, lane, len);
	return taken < 0 ? failed(run, 0, DRIVER_RING, 0, 0) : ret;
}

static void begin(struct driver_run *run)
{
	ring_open(run->hiprio);
	for (uint32_t i = 0; i < run->queues; i++)
		ring_open(&run->requests[i]);
	for (uint32_t i = 0; i < run->depth; i++)
		run->lanes[i].sent = run->lanes[i].in_flight = 0;
	for (run->spare_count = 0; run->spare_count < DRIVER_PLACES; run->spare_count++)
		run->spare[run->spare_count] = run->spare_count;
	run->begun = clock_ns();
}

int driver_run(struct driver_run *run)
{
	int ret = 0;

	if (!run->begun)
		begin(run);
	/* At the beginning; or those that waited when a signal came. */
	for (uint32_t i = 0; !ret && i < run->depth; i++)
		if (!run->lanes[i].in_flight)
			ret = go_on(run, i);
	while (!ret && run->busy) {
		for (uint32_t i = 0; !ret && i < run->queues; i++)
			ret = reap(run, &run->requests[i]);
		if (run->busy && !ret)
			ret = ring_wait(run->requests, run->queues, run->spin);
	}
	if (!ret && !run->elapsed)
		run->elapsed = clock_ns() - run->begun;
	return ret ? ret : await_places(run, DRIVER_PLACES);
}
