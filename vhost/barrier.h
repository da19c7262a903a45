/* Ordered access to memory another process changes at the same time. No other file spells an atomic.
 *
 * Rule 1. What the other side may change is read once, into a local, and the local is checked and used.
 * Rule 2. An acquire load is ordered before every access after it; a release store after every access before it. A
 *         comment at each names the store, or the load, on the other side that it pairs with.
 * Rule 3. Nothing but full_fence orders a store before a later load.
 */
#ifndef VHOST_BARRIER_H
#define VHOST_BARRIER_H

#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian (virtio 1.3, section 1.4)");

/* Volatile: the compiler neither repeats nor tears these, and keeps them in the order they are written in. That order
 * is also what a process that replaces a dead one finds in memory. */
#define read_once(p) (*(const volatile __typeof__(*(p)) *)(p))
#define write_once(p, value) ((void)(*(volatile __typeof__(*(p)) *)(p) = (value)))

#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_release(p, value) __atomic_store_n((p), (value), __ATOMIC_RELEASE)

#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* Read-modify-write as one step, fully ordered. Both return the value before. */
#define fetch_or(p, bits) __atomic_fetch_or((p), (bits), __ATOMIC_SEQ_CST)
#define fetch_add(p, n) __atomic_fetch_add((p), (n), __ATOMIC_SEQ_CST)

/* Between two looks at what another core may change: the other thread of this core, or its power, may be spared. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" : : : "memory");
#endif
}

/* Reads a record once, of any alignment. The fields may be of different moments, but they stay what they are. */
static inline void copy_once(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	__asm__ volatile("" : : : "memory");
}

#endif
