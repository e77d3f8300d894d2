// Runs the threads of a CUDA kernel on one CPU core.
//
// Every CUDA thread is a fiber: a stack of its own, and a place to go on. The blocks of a launch run one after
// another; the threads of a block take turns, and change only where CUDA lets them wait for each other: at
// barriers and in warp collectives. Nothing else interrupts a thread, so a run is repeatable, and the order of the
// turns is the caller's choice: forward, reverse, or shuffled by a seed. A kernel that misses a barrier is wrong
// in some order.
//
// Three builds of this file:
//   plain               to compare values;
//   ENGINE_FOR_THREADS  for kernels built with -fsanitize=thread. Every CUDA thread is a fiber of
//   ThreadSanitizer's
//                       too, ordered with the others by barriers and collectives only, never by the turns they
//                       happen to take. Two accesses that no barrier orders are a race, in one block or in two;
//   ENGINE_FOR_ADDRESS  for kernels built with -fsanitize=address: shared memory outside of the arrays is
//   forbidden.
// The engine itself is never instrumented.
#include "engine.hpp"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// ---------------------------------------------------------------------------------------------------------------
// What the sanitizers have to be told
// ---------------------------------------------------------------------------------------------------------------
#ifdef ENGINE_FOR_THREADS
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
// All that was done before a release of a cell comes before all that is done after an acquire of it.
static void release(void* cell) { __tsan_release(cell); }
static void acquire(void* cell) { __tsan_acquire(cell); }
static const unsigned NO_SYNCHRONISATION = 1;

// While one of these lives, memory that the engine moves, fills, allocates or frees is none of ThreadSanitizer's
// business, which watches memmove, memset, new and delete everywhere.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
static void release(void*) {}
static void acquire(void*) {}
struct Unwatched {
  Unwatched() {}
};
#endif

#ifdef ENGINE_FOR_ADDRESS
extern "C" {
void __asan_poison_memory_region(void const volatile* address, size_t size);
void __asan_unpoison_memory_region(void const volatile* address, size_t size);
}
static void forbid(void* address, size_t bytes) { __asan_poison_memory_region(address, bytes); }
static void permit(void* address, size_t bytes) { __asan_unpoison_memory_region(address, bytes); }
#else
static void forbid(void*, size_t) {}
static void permit(void*, size_t) {}
#endif

namespace {

const unsigned WARP = 32;
const size_t PAGE = 4096;
const size_t STACK = 64 << 10;
const size_t SHARED = 256 << 10;  // more than any block may have
const size_t SHARED_GAP = 128;    // between arrays, so that writing beyond one of them does not reach the next

// ---------------------------------------------------------------------------------------------------------------
// State
// ---------------------------------------------------------------------------------------------------------------
enum class State { ready, at_barrier, in_collective, exited };

struct PendingCopy {
  void* to;
  const void* from;
  unsigned group;
};

struct Fiber {
  uint3 index;
  State state;
  int line;           // where it waits
  unsigned barriers;  // that it has come to
  bool started;
  ucontext_t context;     // where it begins
  void* continuation[5];  // where it goes on: for __builtin_setjmp
  void* tsan_fiber;
  std::vector<PendingCopy> copies;
  unsigned committed_groups;
};

// Lanes of one warp that meet to exchange values.
struct Meeting {
  unsigned warp, mask, arrived, left;
  int line;
  uint64_t values[WARP];
};

const size_t MAX_TSAN_FIBERS = 8000;  // ThreadSanitizer itself allows a few more

struct SharedArray {
  const void* key;
  void* address;
};

std::vector<Fiber> fibers;  // of the running block
Fiber* current;             // the running one; nullptr while the scheduler runs
void* scheduler_continuation[5];

const cuda_on_cpu::Launch* launch;
void (*kernel_body)(void*);
void* kernel_arguments;
char message[256];  // the first error of the launch

std::vector<void*> tsan_fibers;
char* stacks;
char* shared;
size_t shared_used, shared_end;  // bytes the kernel has asked for; where the next array goes
std::vector<SharedArray> static_arrays;
std::deque<Meeting> meetings;  // all of the block; a deque, because others keep pointers to them
std::vector<Meeting*> waiting_meetings, free_meetings;

// Cells for release and acquire. Barriers take turns with two, because a thread may have come to the next barrier
// before another has left this one; it cannot be two ahead.
char launch_cell, end_cell, barrier_cells[2];

// ---------------------------------------------------------------------------------------------------------------
// Switching. A fiber is entered once through ucontext, whose switch costs two system calls; after that
// __builtin_setjmp and __builtin_longjmp do it in a few instructions. (Unlike setjmp from the library they are not
// intercepted by AddressSanitizer, which would take a jump to another stack for an error.)
// ThreadSanitizer needs to see nothing but its own call, and there speed does not matter.
// ---------------------------------------------------------------------------------------------------------------
#ifdef ENGINE_FOR_THREADS
ucontext_t scheduler_context;
void* scheduler_tsan_fiber;

void switch_to_scheduler() {
  Fiber& self = *current;
  __tsan_switch_to_fiber(scheduler_tsan_fiber, NO_SYNCHRONISATION);
  swapcontext(&self.context, &scheduler_context);
}

void switch_to(Fiber& fiber) {
  __tsan_switch_to_fiber(fiber.tsan_fiber, NO_SYNCHRONISATION);
  swapcontext(&scheduler_context, &fiber.context);
}
#else
__attribute__((noinline)) void jump(void** continuation) { __builtin_longjmp(continuation, 1); }

__attribute__((noinline)) void switch_to_scheduler() {
  if (__builtin_setjmp(current->continuation) == 0) jump(scheduler_continuation);
}

__attribute__((noinline)) void switch_to(Fiber& fiber) {
  if (__builtin_setjmp(scheduler_continuation) != 0) return;  // back from the fiber
  if (fiber.started) jump(fiber.continuation);
  fiber.started = true;
  setcontext(&fiber.context);
}
#endif

void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  switch_to(fiber);
  current = nullptr;
}

void wait(State state, int line) {
  current->state = state;
  current->line = line;
  switch_to_scheduler();
}

void thread_main() {
  acquire(&launch_cell);
  kernel_body(kernel_arguments);
  release(&end_cell);
  wait(State::exited, 0);
}

// Only the first error of a launch counts.
void report(const char* format, va_list values) {
  if (!message[0]) vsnprintf(message, sizeof message, format, values);
}

void report(const char* format, ...) __attribute__((format(printf, 1, 2)));
void report(const char* format, ...) {
  va_list values;
  va_start(values, format);
  report(format, values);
  va_end(values);
}

// ---------------------------------------------------------------------------------------------------------------
// Memory of a block
// ---------------------------------------------------------------------------------------------------------------
// ThreadSanitizer remembers who used an address, so there every block gets memory of its own, and gives it back.
// A forbidden page below each stack turns an overflow into a fault.
char* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

size_t memory_size(unsigned threads) { return SHARED + threads * STACK; }

bool map_block_memory(unsigned threads) {
  shared = map_memory(memory_size(threads));
  if (!shared) return false;
  stacks = shared + SHARED;
  for (unsigned t = 0; t < threads; ++t) mprotect(stacks + t * STACK, PAGE, PROT_NONE);
  return true;
}

void unmap_block_memory(unsigned threads) {
  permit(shared, memory_size(threads));
  munmap(shared, memory_size(threads));
}

// Shared memory that nobody wrote reads as NaN, or as -1.
void* open_shared(size_t offset, size_t bytes) {
  permit(shared + offset, bytes);
  return memset(shared + offset, 0xFF, bytes);
}

// Where the next array may begin. The gap is not counted: it is not the kernel's.
size_t after_array(size_t offset, size_t bytes) {
  return (offset + bytes + SHARED_GAP - 1) / SHARED_GAP * SHARED_GAP + SHARED_GAP;
}

void clear_shared() {
  static_arrays.clear();
  forbid(shared, SHARED);
  open_shared(0, launch->dynamic_shared);
  shared_used = launch->dynamic_shared;
  shared_end = after_array(0, launch->dynamic_shared);
}

// ---------------------------------------------------------------------------------------------------------------
// One block
// ---------------------------------------------------------------------------------------------------------------
unsigned volume(const unsigned* extent) { return extent[0] * extent[1] * extent[2]; }

dim3 position(unsigned i, const unsigned* extent) {
  return {i % extent[0], i / extent[0] % extent[1], i / extent[0] / extent[1]};
}

// The order of n threads or blocks. Our own shuffle: the same on every machine.
std::vector<unsigned> turns(unsigned n) {
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; ++i) order[i] = launch->order == 1 ? n - 1 - i : i;
  if (launch->order > 1) {
    std::mt19937 random(launch->order);
    for (unsigned i = n; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  return order;
}

void prepare(unsigned t) {
  Fiber& fiber = fibers[t];
  fiber.index = position(t, launch->block);
  fiber.state = State::ready;
  fiber.barriers = fiber.committed_groups = 0;
  fiber.copies.clear();
  fiber.started = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks + t * STACK;
  // Stacks that all end at the same offset of a page would fight for the same few lines of the cache.
  fiber.context.uc_stack.ss_size = STACK - t % 64 * 192;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, thread_main, 0);
#ifdef ENGINE_FOR_THREADS
  fiber.tsan_fiber = __tsan_create_fiber(0);
  tsan_fibers.push_back(fiber.tsan_fiber);
#endif
}

// Goes round until all threads wait or have exited.
void run_ready(const std::vector<unsigned>& order) {
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned t : order) {
      if (fibers[t].state != State::ready) continue;
      resume(fibers[t]);
      if (message[0]) return;
      progress = true;
    }
  }
}

void explain_meeting(const Meeting& meeting) {
  for (unsigned l = 0; l < WARP; ++l) {
    if (!((meeting.mask & ~meeting.arrived) >> l & 1)) continue;
    const unsigned t = meeting.warp * WARP + l;
    if (t >= fibers.size()) {
      return report("line %d: lane %u of the mask is not in the block", meeting.line, l);
    }
    if (fibers[t].state == State::exited) {
      return report("line %d: lane %u of the mask has exited", meeting.line, l);
    }
    return report("line %d: deadlock, lane %u of the mask waits at line %d", meeting.line, l, fibers[t].line);
  }
}

// All threads wait or have exited. True if they wait at one barrier, and may go on.
bool pass_barrier() {
  unsigned exited = 0;
  const Fiber* first = nullptr;
  if (!waiting_meetings.empty()) {
    explain_meeting(*waiting_meetings.front());
    return false;
  }
  for (const Fiber& fiber : fibers) {
    if (fiber.state == State::exited) {
      ++exited;
    } else if (!first) {
      first = &fiber;
    } else if (fiber.line != first->line) {
      report("threads wait at different barriers: lines %d and %d", first->line, fiber.line);
      return false;
    }
  }
  if (exited) {
    report("line %d: barrier after %u of %zu threads have exited", first->line, exited, fibers.size());
    return false;
  }
  for (Fiber& fiber : fibers) fiber.state = State::ready;
  return true;
}

bool all_exited() {
  for (const Fiber& fiber : fibers) {
    if (fiber.state != State::exited) return false;
  }
  return true;
}

void forget_last_block() {
  const Unwatched guard;
  clear_shared();
  meetings.clear();
  waiting_meetings.clear();
  free_meetings.clear();
}

// ThreadSanitizer gives the number of a destroyed fiber to a new one, and would then take the two for one: races
// between their blocks would be lost. So fibers live as long as the launch does, or until there would be too many.
void destroy_tsan_fibers() {
#ifdef ENGINE_FOR_THREADS
  for (void* fiber : tsan_fibers) __tsan_destroy_fiber(fiber);
  tsan_fibers.clear();
#endif
}

void run_block(const std::vector<unsigned>& order) {
  forget_last_block();
  if (tsan_fibers.size() + fibers.size() > MAX_TSAN_FIBERS) destroy_tsan_fibers();
  for (unsigned t = 0; t < fibers.size(); ++t) prepare(t);
  do {
    run_ready(order);
  } while (!message[0] && !all_exited() && pass_barrier());
}

// ---------------------------------------------------------------------------------------------------------------
// Meetings of lanes
// ---------------------------------------------------------------------------------------------------------------
Meeting* join_meeting(unsigned warp, unsigned mask, int line) {
  const Unwatched guard;
  for (Meeting* meeting : waiting_meetings) {
    if (meeting->warp == warp && meeting->mask == mask && meeting->line == line) return meeting;
  }
  if (free_meetings.empty()) {
    meetings.emplace_back();
    free_meetings.push_back(&meetings.back());
  }
  Meeting* meeting = free_meetings.back();
  free_meetings.pop_back();
  *meeting = {warp, mask, 0, 0, line, {}};
  waiting_meetings.push_back(meeting);
  return meeting;
}

void begin_meeting(Meeting* meeting) {
  const Unwatched guard;
  for (size_t i = 0; i < waiting_meetings.size(); ++i) {
    if (waiting_meetings[i] != meeting) continue;
    waiting_meetings.erase(waiting_meetings.begin() + i);
    break;
  }
  for (unsigned l = 0; l < WARP; ++l) {
    if (meeting->mask >> l & 1) fibers[meeting->warp * WARP + l].state = State::ready;
  }
}

void leave_meeting(Meeting* meeting) {
  ++meeting->left;
#ifndef ENGINE_FOR_THREADS  // there a meeting is a cell, and a cell used twice would order lanes that never met
  if (meeting->left == static_cast<unsigned>(__builtin_popcount(meeting->mask))) free_meetings.push_back(meeting);
#endif
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------
// What threads ask for
// ---------------------------------------------------------------------------------------------------------------
namespace cuda_on_cpu {

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  report(format, values);
  va_end(values);
  wait(State::exited, 0);  // the scheduler sees the message and never comes back
  __builtin_unreachable();
}

void barrier(int line) {
  char* cell = &barrier_cells[current->barriers++ % 2];
  release(cell);
  wait(State::at_barrier, line);
  acquire(cell);
}

int lane() { return static_cast<int>((current - fibers.data()) % WARP); }

uint64_t collective(unsigned mask, uint64_t value, int source_lane, int line) {
  const unsigned me = lane(), warp = static_cast<unsigned>(current - fibers.data()) / WARP;
  if (!(mask >> me & 1)) fail("line %d: lane %u is not in its own mask", line, me);
  if (!(mask >> source_lane & 1)) {
    fail("line %d: lane %u reads lane %d, which is not in the mask", line, me, source_lane);
  }
  Meeting* meeting = join_meeting(warp, mask, line);
  meeting->values[me] = value;
  meeting->arrived |= 1u << me;
  release(meeting);
  if (meeting->arrived == mask) {
    begin_meeting(meeting);
  } else {
    wait(State::in_collective, line);
  }
  acquire(meeting);
  const uint64_t result = meeting->values[source_lane];
  leave_meeting(meeting);
  return result;
}

void* dynamic_shared() { return shared; }

void* static_shared(const void* key, size_t bytes, int line) {
  for (const SharedArray& array : static_arrays) {
    if (array.key == key) return array.address;
  }
  shared_used += bytes;
  if (shared_used > launch->shared_limit) {
    fail("line %d: %zu bytes of shared memory, %zu allowed", line, shared_used, launch->shared_limit);
  }
  const Unwatched guard;
  void* const address = open_shared(shared_end, bytes);
  shared_end = after_array(shared_end, bytes);
  static_arrays.push_back({key, address});
  return address;
}

bool copies_arrive_at_once() { return launch->order % 2 == 1; }

void postpone_copy(void* to, const void* from) {
  const Unwatched guard;
  current->copies.push_back({to, from, current->committed_groups});
}

void commit_copies() { ++current->committed_groups; }

// Copies arrive in the order in which they were asked for; those of the last `groups_in_flight` groups, and those
// not committed at all, stay away.
bool next_arrival(unsigned groups_in_flight, void** to, const void** from) {
  std::vector<PendingCopy>& copies = current->copies;
  if (copies.empty() || copies.front().group + groups_in_flight >= current->committed_groups) return false;
  *to = copies.front().to;
  *from = copies.front().from;
  const Unwatched guard;
  copies.erase(copies.begin());
  return true;
}

const char* run(const Launch& description, void (*body)(void*), void* arguments) {
  launch = &description;
  kernel_body = body;
  kernel_arguments = arguments;
  message[0] = 0;
  gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
  blockDim = {launch->block[0], launch->block[1], launch->block[2]};
  const unsigned threads = volume(launch->block);
  const std::vector<unsigned> order = turns(threads);
  fibers.resize(threads);
  release(&launch_cell);
#ifdef ENGINE_FOR_THREADS
  scheduler_tsan_fiber = __tsan_get_current_fiber();
  const bool fresh_memory = true;
#else
  const bool fresh_memory = false;
#endif
  if (!fresh_memory && !map_block_memory(threads)) return "no memory for the stacks of a block";
  for (unsigned b : turns(volume(launch->grid))) {
    if (fresh_memory && !map_block_memory(threads)) return "no memory for the stacks of a block";
    blockIdx = position(b, launch->grid);
    run_block(order);
    if (fresh_memory) unmap_block_memory(threads);
    if (message[0]) break;
  }
  if (!fresh_memory) unmap_block_memory(threads);
  acquire(&end_cell);
  destroy_tsan_fibers();
  return message[0] ? message : nullptr;
}

}  // namespace cuda_on_cpu
