// The part of CUDA C++ that the kernels use, for g++. This header is the language; engine.cpp runs the threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "engine.hpp"

#define CUDA_ON_CPU 1

// ---------------------------------------------------------------------------------------------------------------
// Qualifiers
// ---------------------------------------------------------------------------------------------------------------
#define __global__ inline  // so that g++ drops the kernels that are not asked for
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// ---------------------------------------------------------------------------------------------------------------
// Vector types, aligned as on the GPU: a misaligned float4 is an error there, too
// ---------------------------------------------------------------------------------------------------------------
#define CPU_VECTOR_TYPES(T, name)                                                   \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; };                              \
  struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; };                        \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                 \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CPU_VECTOR_TYPES(float, float)
CPU_VECTOR_TYPES(int, int)
CPU_VECTOR_TYPES(unsigned, uint)
CPU_VECTOR_TYPES(unsigned short, ushort)
CPU_VECTOR_TYPES(unsigned char, uchar)
#undef CPU_VECTOR_TYPES

// ---------------------------------------------------------------------------------------------------------------
// Arithmetic and memory
// ---------------------------------------------------------------------------------------------------------------
using std::max;
using std::min;

static const int warpSize = 32;

template <class T>
static inline T __ldg(const T* address) {
  return *address;
}

// Real atomics: ThreadSanitizer knows them, so an ordinary += in their place is a race to it.
static inline int atomicAdd(int* address, int value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

static inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

static inline float atomicAdd(float* address, float value) {
  unsigned* const bits = reinterpret_cast<unsigned*>(address);
  unsigned seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
  float old;
  do {
    memcpy(&old, &seen, sizeof old);
    const float sum = old + value;
    memcpy(&wanted, &sum, sizeof sum);
  } while (!__atomic_compare_exchange_n(bits, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

// ---------------------------------------------------------------------------------------------------------------
// Barriers and warp shuffles. __builtin_LINE() as a default argument is the line of the caller.
// ---------------------------------------------------------------------------------------------------------------
namespace cuda_on_cpu {

template <class T>
static inline T shuffle(unsigned mask, T value, int source_lane, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "shuffles move at most 8 plain bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = collective(mask, bits, source_lane, line);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// A warp is cut into groups of `width` lanes; who would read beyond the end of its group reads itself.
static inline int group_start(int width) { return lane() & ~(width - 1); }
static inline int within_group(int source_lane, int width) {
  return source_lane < group_start(width) + width ? source_lane : lane();
}

}  // namespace cuda_on_cpu

static inline void __syncthreads(int line = __builtin_LINE()) { cuda_on_cpu::barrier(line); }

static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  cuda_on_cpu::collective(mask, 0, cuda_on_cpu::lane(), line);
}

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::group_start(width) + (source & (width - 1)), line);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::within_group(cuda_on_cpu::lane() ^ bits, width), line);
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                                 int line = __builtin_LINE()) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::within_group(cuda_on_cpu::lane() + (int)by, width), line);
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const int source = cuda_on_cpu::lane() - (int)by;
  return cuda_on_cpu::shuffle(mask, value, source < cuda_on_cpu::group_start(width) ? cuda_on_cpu::lane() : source,
                              line);
}

// ---------------------------------------------------------------------------------------------------------------
// Shared memory: what `extern __shared__` and `__shared__` are to NVRTC
// ---------------------------------------------------------------------------------------------------------------
#define SK_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(cuda_on_cpu::dynamic_shared())

// The address of a static variable tells the arrays of one kernel apart, and those of two instances of a template.
#define SK_SHARED(T, name, n)                                                                             \
  static char name##_key;                                                                                 \
  T(&name)[n] = *static_cast<T(*)[n]>(cuda_on_cpu::static_shared(&name##_key, sizeof(T) * (n), __LINE__))

// ---------------------------------------------------------------------------------------------------------------
// Asynchronous copies of 16 bytes from global to shared memory: what cp.async is to NVRTC
// ---------------------------------------------------------------------------------------------------------------
namespace cuda_on_cpu {

struct __align__(16) SixteenBytes {
  uint64_t low, high;
};

static inline void move_16(void* to, const void* from) {
  *static_cast<SixteenBytes*>(to) = *static_cast<const SixteenBytes*>(from);
}

static inline void copy_async_16(void* to, const void* from, int line) {
  if (reinterpret_cast<uintptr_t>(to) % 16) fail("line %d: destination of a 16-byte copy is not aligned", line);
  if (reinterpret_cast<uintptr_t>(from) % 16) fail("line %d: source of a 16-byte copy is not aligned", line);
  if (copies_arrive_at_once()) {
    move_16(to, from);
  } else {
    postpone_copy(to, from);
  }
}

// A template, because the instruction takes a constant: what is not one must not compile here either.
template <unsigned groups_in_flight>
static inline void copy_wait() {
  void* to;
  const void* from;
  while (next_arrival(groups_in_flight, &to, &from)) move_16(to, from);
}

}  // namespace cuda_on_cpu

#define SK_COPY_ASYNC_16(dst, src) cuda_on_cpu::copy_async_16((dst), (src), __LINE__)
#define SK_COPY_COMMIT() cuda_on_cpu::commit_copies()
#define SK_COPY_WAIT(n) cuda_on_cpu::copy_wait<(n)>()

// ---------------------------------------------------------------------------------------------------------------
// Sixteen-bit floating point, held as bits in an unsigned short
// ---------------------------------------------------------------------------------------------------------------
namespace cuda_on_cpu {

static inline float half_to_float(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

static inline unsigned short float_to_half(float value) {
  const _Float16 half = static_cast<_Float16>(value);  // to nearest, ties to even; NaN stays NaN
  unsigned short bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

// bfloat16 is the upper half of a float32.
static inline float bfloat16_to_float(unsigned short bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

static inline unsigned short float_to_bfloat16(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  if (value != value)
    return static_cast<unsigned short>(word >> 16 | 0x40);  // rounding could turn NaN into infinity
  word += 0x7fff + (word >> 16 & 1);                        // to nearest, ties to even
  return static_cast<unsigned short>(word >> 16);
}

}  // namespace cuda_on_cpu

#define SK_HALF_TO_FLOAT(bits) cuda_on_cpu::half_to_float(bits)
#define SK_FLOAT_TO_HALF(value) cuda_on_cpu::float_to_half(value)
#define SK_BFLOAT16_TO_FLOAT(bits) cuda_on_cpu::bfloat16_to_float(bits)
#define SK_FLOAT_TO_BFLOAT16(value) cuda_on_cpu::float_to_bfloat16(value)

// ---------------------------------------------------------------------------------------------------------------
// How Python launches a kernel: the argument list is an array of pointers, as cuLaunchKernel takes it
// ---------------------------------------------------------------------------------------------------------------
namespace cuda_on_cpu {

template <class... Parameters>
struct Kernel {
  void (*function)(Parameters...);
  void** arguments;

  template <size_t... I>
  void call(std::index_sequence<I...>) {
    function(*static_cast<Parameters*>(arguments[I])...);
  }

  static void run_thread(void* kernel) {
    static_cast<Kernel*>(kernel)->call(std::index_sequence_for<Parameters...>());
  }

  const char* launch(const Launch& launch) { return run(launch, run_thread, this); }
};

template <class... Parameters>
Kernel<Parameters...> bind(void (*function)(Parameters...), void** arguments) {
  return {function, arguments};
}

// 'f' floating point, 'i' signed, 'u' unsigned integer, 's' anything else
template <class T>
constexpr char kind() {
  return std::is_floating_point<T>::value ? 'f'
         : !std::is_integral<T>::value    ? 's'
         : std::is_signed<T>::value       ? 'i'
                                          : 'u';
}

template <class T>
struct Bytes {
  static constexpr int value = sizeof(T);
};
template <>
struct Bytes<void> {
  static constexpr int value = 0;
};

// What a parameter is: its bytes; whether it is a pointer, and to what it may not write; kind and bytes of the
// scalar or of what is pointed to.
struct Parameter {
  int size, is_pointer, is_const, element_size;
  char element_kind;
};

template <class P>
constexpr Parameter describe() {
  typedef typename std::remove_pointer<P>::type Target;
  typedef typename std::remove_cv<Target>::type Element;
  return {sizeof(P), std::is_pointer<P>::value, std::is_const<Target>::value, Bytes<Element>::value,
          kind<Element>()};
}

// The parameters of a kernel into `list`, at most `room` of them; returns their number.
template <class... Parameters>
int parameters(void (*)(Parameters...), Parameter* list, int room) {
  const Parameter all[] = {describe<Parameters>()..., Parameter()};
  const int n = sizeof...(Parameters);
  for (int i = 0; i < n && i < room; ++i) list[i] = all[i];
  return n;
}

}  // namespace cuda_on_cpu
