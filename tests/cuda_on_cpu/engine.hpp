// What the engine (engine.cpp) offers to the language header (cuda_on_cpu.hpp), and how a launch is described.
#pragma once
#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
};
typedef dim3 uint3;

// CUDA's built-in variables. The engine sets them whenever it goes on with a thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_on_cpu {

// One launch, as module.py fills it in: keep the two in step.
struct Launch {
  unsigned grid[3];
  unsigned block[3];
  size_t dynamic_shared;  // bytes
  size_t shared_limit;    // bytes that dynamic and static shared memory may take together
  unsigned order;         // 0 forward, 1 reverse, else the seed of a permutation
};

// Runs `kernel(arguments)` once for every thread. Returns a message, or nullptr when all went well.
const char* run(const Launch& launch, void (*kernel)(void*), void* arguments);

// What a running thread may ask for. `line` is a line of the kernel's source, for the messages.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void barrier(int line);
int lane();
uint64_t collective(unsigned mask, uint64_t value, int source_lane, int line);
void* dynamic_shared();
void* static_shared(const void* key, size_t bytes, int line);

// Asynchronous copies. The engine only keeps the list: the bytes are moved by the header, so that the sanitizers,
// which see nothing of the engine, see them move.
bool copies_arrive_at_once();
void postpone_copy(void* to, const void* from);
void commit_copies();
bool next_arrival(unsigned groups_in_flight, void** to, const void** from);

}  // namespace cuda_on_cpu
