// Small kernels to test the engine with. They use what the package's kernels use; examples.py plants bugs in them.
#ifndef SK_DYNAMIC_SHARED
#define SK_DYNAMIC_SHARED(T, name)                              \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* const name = reinterpret_cast<T*>(name##_bytes)
#define SK_SHARED(T, name, n) __shared__ T name[n]
#if __CUDA_ARCH__ >= 800
#define SK_COPY_ASYNC_16(dst, src)                                                                         \
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(dst)), \
               "l"(__cvta_generic_to_global(src)))
#define SK_COPY_COMMIT() asm volatile("cp.async.commit_group;")
#define SK_COPY_WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n))
#else
#define SK_COPY_ASYNC_16(dst, src) (*reinterpret_cast<float4*>(dst) = *reinterpret_cast<const float4*>(src))
#define SK_COPY_COMMIT()
#define SK_COPY_WAIT(n)
#endif
#endif

// Staging through shared memory. A block transposes TILE columns of (rows, columns), TILE rows at a time.
template <typename T, int TILE>
__global__ void transpose(const T* __restrict__ in, T* __restrict__ out, int rows, int columns) {
  SK_SHARED(T, tile, TILE * (TILE + 1));
  const int left = blockIdx.x * TILE, x = threadIdx.x;
  for (int top = 0; top < rows; top += TILE) {
    if (top) __syncthreads();  // before the tile is overwritten
    for (int y = threadIdx.y; y < TILE; y += blockDim.y) {
      if (top + y < rows && left + x < columns) {
        tile[y * (TILE + 1) + x] = in[(top + y) * columns + left + x];
      }
    }
    __syncthreads();  // before the tile is read
    for (int y = threadIdx.y; y < TILE; y += blockDim.y) {
      if (left + y < columns && top + x < rows) {
        out[(left + y) * rows + top + x] = tile[x * (TILE + 1) + y];
      }
    }
  }
}

// A reduction by shuffles: one warp sums one row.
template <int WARPS>
__global__ void __launch_bounds__(WARPS * 32) row_sums(const float* matrix, float* sums, int rows, int columns) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;  // the whole warp
  float sum = 0.f;
  for (int column = lane; column < columns; column += 32) sum += matrix[row * columns + column];
  for (int bit = 16; bit; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  if (lane == 0) sums[row] = sum;
}

// A sum by atomics, within a block and between blocks.
__global__ void total(const float* values, float* sum, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(sum, values[i]);
}

// Asynchronous copies into two buffers in turn. A block adds up its chunks, each turned round, times its number:
// out[t] = sum over c of (c + 1) in[c][CHUNK - 1 - t].
template <int CHUNK>
__global__ void fold(const float* in, float* out, int chunks) {
  SK_DYNAMIC_SHARED(float, buffers);  // [2][CHUNK]
  const int t = threadIdx.x;
  const float* mine = in + blockIdx.x * chunks * CHUNK;
  float sum = 0.f;
  for (int c = -1; c < chunks; ++c) {
    if (c + 1 < chunks && t < CHUNK / 4) {
      SK_COPY_ASYNC_16(buffers + (c + 1) % 2 * CHUNK + 4 * t, mine + (c + 1) * CHUNK + 4 * t);
    }
    SK_COPY_COMMIT();
    if (c < 0) continue;
    SK_COPY_WAIT(1);  // chunk c has come, the next one may be on its way
    __syncthreads();  // so it has for all threads
    sum += (c + 1) * buffers[c % 2 * CHUNK + CHUNK - 1 - t];
    __syncthreads();  // before the copy after the next overwrites this buffer
  }
  out[blockIdx.x * CHUNK + t] = sum;
}

// Shared memory that only the threads of one warp exchange.
__global__ void turn_warps(const float* in, float* out) {
  SK_SHARED(float, tile, 64);
  const int i = threadIdx.x;
  tile[i] = in[i];
  __syncwarp();
  out[i] = tile[i ^ 31];
}

// What is in shared memory before anybody writes to it.
__global__ void untouched(float* out) {
  SK_SHARED(float, fixed, 4);
  SK_DYNAMIC_SHARED(float, dynamic);
  const int i = threadIdx.x;
  out[blockIdx.x * 8 + i] = fixed[i];
  out[blockIdx.x * 8 + 4 + i] = dynamic[i];
  fixed[i] = dynamic[i] = 1.f;
}

// Every shuffle, in groups of 8 lanes: out[i][lane] is the lane that was read.
__global__ void shuffles(int* out) {
  const int lane = threadIdx.x;
  const unsigned all = 0xffffffffu;
  out[lane] = __shfl_sync(all, lane, 11, 8);
  out[32 + lane] = __shfl_xor_sync(all, lane, 12, 8);
  out[64 + lane] = __shfl_down_sync(all, lane, 3, 8);
  out[96 + lane] = __shfl_up_sync(all, lane, 3, 8);
  // Half of the warp meets more often than the other half; then they all meet.
  int far = lane;
  if (lane < 16) far = __shfl_xor_sync(0x0000ffffu, far, 1);
  __syncwarp();
  out[128 + lane] = __shfl_sync(all, far, 31 - lane);
}

// Sixteen-bit floating point there and back.
#ifdef SK_HALF_TO_FLOAT
__global__ void sixteen_bits(const float* in, unsigned short* half, unsigned short* bfloat16, float* from_half,
                             float* from_bfloat16, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    half[i] = SK_FLOAT_TO_HALF(in[i]);
    bfloat16[i] = SK_FLOAT_TO_BFLOAT16(in[i]);
    from_half[i] = SK_HALF_TO_FLOAT(half[i]);
    from_bfloat16[i] = SK_BFLOAT16_TO_FLOAT(bfloat16[i]);
  }
}
#endif

// Who comes first, second, third ...: the engine's order of turns.
__global__ void arrivals(int* counter, int* order) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  order[atomicAdd(counter, 1)] = block * blockDim.x * blockDim.y * blockDim.z + thread;
}

// Reads 16 bytes at once, from global and from shared memory.
__global__ void turn_vectors(const float4* in, float4* out) {
  SK_SHARED(float4, tile, 64);
  tile[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
}

// More values at once than there are registers for so many threads: the compiler must spill.
__global__ void __launch_bounds__(1024) crowded(const float* in, float* out, int n) {
  float values[160];
#pragma unroll
  for (int i = 0; i < 160; ++i) values[i] = in[i * n + threadIdx.x];
  for (int round = 0; round < n; ++round) {
#pragma unroll
    for (int i = 0; i < 160; ++i) values[i] = values[i] * values[(i + 1) % 160] + in[round];
  }
#pragma unroll
  for (int i = 0; i < 160; ++i) out[i * n + threadIdx.x] = values[i];
}
