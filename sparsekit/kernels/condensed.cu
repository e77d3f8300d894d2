// The products of a sparse weight W with constant fan-in, on the GPU.
//
//     gather_features   y = W x   for feature-major x (n_in, batch); W^T g over the transposed index
//     gather_samples    the same for samples-first x (batch, n_in), y (batch, n_out)
//     gather_images     convolution: gather_features at every output position, the rows are pixels
//     gather_few        y = W x   for few samples, or for so few weights that staging x would not pay
//     outer             g x^T at the stored places
//     pack              the weights in the order in which the gather kernels read them
//
// No kernel uses atomics: every result is written by one thread that adds in a fixed order, so the same input
// gives the same bits on the same kind of GPU. Sums are float32, whatever x is; results are float32.
//
// What bounds these products is neither arithmetic nor DRAM but the gather: each stored weight needs one value of
// x for every sample. Shared memory delivers 128 bytes a clock to an SM, several times what the L2 cache does, so
// the tiled kernels stage x there once and gather from there.
//
// Packed rows, made by gpu_layout.py: a "slice" is 16 rows of W that one warp multiplies side by side, two lanes
// a row. A "step" is 4 stored weights of each row of a slice, 64 in all, next to each other in memory, so that a
// warp loads them together. Inputs are cut in "chunks" whose rows of x fit in shared memory; an index counts from
// the first input of its chunk and so fits in 16 bits for any n_in. Rows shorter than their slice are filled up
// with zeros whose index points to a row of zeros behind the chunk: no value of x that a neuron does not read,
// not even NaN or infinity, can reach its sum.

#ifndef SK_DYNAMIC_SHARED  // a host compiler that runs these kernels in tests brings its own definitions
#define SK_DYNAMIC_SHARED(T, name) extern __shared__ T name[]
#if __CUDA_ARCH__ >= 800
#define SK_COPY_ASYNC_16(dst, src)                                                                        \
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(dst)), \
               "l"(src)                                                                                   \
               : "memory")
#define SK_COPY_COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define SK_COPY_WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")
#else  // before Ampere: through registers, done when the statement is
#define SK_COPY_ASYNC_16(dst, src) (*(uint4*)(dst) = *(const uint4*)(src))
#define SK_COPY_COMMIT()
#define SK_COPY_WAIT(n)
#endif
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
#define SK_HALF_TO_FLOAT(bits) half_bits_to_float(bits)
#define SK_BFLOAT16_TO_FLOAT(bits) __uint_as_float((unsigned)(bits) << 16)
#endif

const int MAX_THREADS = 384;  // of a block of the tiled kernels; one block an SM is enough to need no spills
const int FEW_THREADS = 128;  // of a block of gather_few
const int PACK_THREADS = 256;

const int ROWS = 16;     // rows of W in a slice: two lanes of a warp share a row
const int SEGMENTS = 8;  // of 16 bytes, in a staged row of x: 128 bytes, every bank of shared memory once
const int SHARE = 4;     // segments of a row that each of the two lanes multiplies

// ---------------------------------------------------------------------------------------------------------------
// Kinds of x
// ---------------------------------------------------------------------------------------------------------------

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) { return SK_HALF_TO_FLOAT(value.bits); }
__device__ __forceinline__ float to_float(BFloat16 value) { return SK_BFLOAT16_TO_FLOAT(value.bits); }

// Kind<X>::Segment holds the COUNT values of 16 bytes, Kind<X>::Quad four values.
template <typename X>
struct Kind {
  typedef uint4 Segment;
  typedef ushort4 Quad;
  static const int COUNT = 8;

  static __device__ __forceinline__ X zero() { return X{0}; }
  static __device__ __forceinline__ void unpack(const uint4& segment, float (&values)[8]) {
    const unsigned words[4] = {segment.x, segment.y, segment.z, segment.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = to_float(X{(unsigned short)(words[i] & 0xffffu)});
      values[2 * i + 1] = to_float(X{(unsigned short)(words[i] >> 16)});
    }
  }
  static __device__ __forceinline__ uint4 segment(const X (&v)[8]) {
    return make_uint4(v[0].bits | (unsigned)v[1].bits << 16, v[2].bits | (unsigned)v[3].bits << 16,
                      v[4].bits | (unsigned)v[5].bits << 16, v[6].bits | (unsigned)v[7].bits << 16);
  }
  static __device__ __forceinline__ void spread(const ushort4& quad, X (&v)[4]) {
    v[0] = X{quad.x}, v[1] = X{quad.y}, v[2] = X{quad.z}, v[3] = X{quad.w};
  }
};

template <>
struct Kind<float> {
  typedef float4 Segment;
  typedef float4 Quad;
  static const int COUNT = 4;

  static __device__ __forceinline__ float zero() { return 0.0f; }
  static __device__ __forceinline__ void unpack(const float4& segment, float (&values)[4]) {
    spread(segment, values);
  }
  static __device__ __forceinline__ float4 segment(const float (&v)[4]) {
    return make_float4(v[0], v[1], v[2], v[3]);
  }
  static __device__ __forceinline__ void spread(const float4& quad, float (&v)[4]) {
    v[0] = quad.x, v[1] = quad.y, v[2] = quad.z, v[3] = quad.w;
  }
};

// Samples of a tile: a staged row holds one value of each.
template <typename X>
struct Tile {
  static const int SAMPLES = SEGMENTS * Kind<X>::COUNT;
};

__device__ __forceinline__ bool aligned(const void* pointer, size_t bytes) { return (size_t)pointer % bytes == 0; }

// ---------------------------------------------------------------------------------------------------------------
// Which part of the work is whose
// ---------------------------------------------------------------------------------------------------------------

struct PackedRows {
  const float4* weights;   // (n_steps, ROWS)
  const ushort4* inputs;   // (n_steps, ROWS), each counted from the first input of its chunk
  const int* steps;        // (n_slices * n_chunks + 1,), steps of slice s in chunk c: from [s * n_chunks + c] on
  const int* outputs;      // (n_slices * ROWS,), row of W; -1: none
  int n_slices, n_chunks, chunk_rows;

  __device__ __forceinline__ int begin(int slice, int chunk) const { return steps[slice * n_chunks + chunk]; }
  __device__ __forceinline__ int end(int slice, int chunk) const { return steps[slice * n_chunks + chunk + 1]; }
  __device__ __forceinline__ int buffer_segments() const { return (chunk_rows + 1) * SEGMENTS; }
};

// A block multiplies some slices; `split` warps share a slice and take its steps in turns.
struct Warp {
  int slice, part, split;     // this warp's slice, its turn among those that share it
  int first_slice, end_slice;  // of the block
  bool working;               // false where the block has more warps than there are slices left

  __device__ __forceinline__ Warp(int row_block, int split, int n_slices) : split(split) {
    const int slices = blockDim.x / 32 / split, warp = threadIdx.x / 32;
    first_slice = row_block * slices;
    end_slice = min(first_slice + slices, n_slices);
    slice = first_slice + warp / split;
    part = warp % split;
    working = slice < n_slices;
  }
};

// The row of W that this lane works on with its neighbour, and its four of the eight segments of a row of x.
// Lanes of neighbouring rows start at different segments: the eight lanes whose 16-byte loads shared memory
// serves together (four rows, two lanes each) ask for eight different segments, which lie in all 32 banks,
// whatever rows of x they gather. Hence no bank conflicts.
struct Lane {
  int row, half;

  __device__ __forceinline__ Lane() : row(threadIdx.x % 32 / 2), half(threadIdx.x % 2) {}
  __device__ __forceinline__ int segment(int s) const { return ((s + row) % SHARE) * 2 + half; }
};

__device__ __forceinline__ bool has_steps(const PackedRows& packed, const Warp& warp, int chunk) {
  for (int slice = warp.first_slice; slice < warp.end_slice; ++slice)
    if (packed.begin(slice, chunk) < packed.end(slice, chunk)) return true;
  return false;
}

// The first chunk from `chunk` on in which a row of this block reads anything; n_chunks if there is none.
__device__ __forceinline__ int next_chunk(const PackedRows& packed, const Warp& warp, int chunk) {
  while (chunk < packed.n_chunks && !has_steps(packed, warp, chunk)) ++chunk;
  return chunk;
}

// ---------------------------------------------------------------------------------------------------------------
// Staging: rows of x to shared memory
// ---------------------------------------------------------------------------------------------------------------

// 16 bytes of a row of x that is contiguous over the samples. Whole aligned segments are copied asynchronously,
// the others value by value; samples behind the batch, and rows that are none (-1), become zero.
template <typename X>
__device__ __forceinline__ void stage_segment(const X* x, int row, int sample, int batch, bool vectors,
                                              typename Kind<X>::Segment* destination) {
  const X* source = x + (size_t)row * batch + sample;
  if (row >= 0 && vectors && sample < batch) {
    SK_COPY_ASYNC_16(destination, source);
    return;
  }
  X values[Kind<X>::COUNT];
#pragma unroll
  for (int i = 0; i < Kind<X>::COUNT; ++i)
    values[i] = row >= 0 && sample + i < batch ? source[i] : Kind<X>::zero();
  *destination = Kind<X>::segment(values);
}

// Feature-major x (n_in, batch): input i is row i.
template <typename X>
struct FeatureRows {
  const X* x;
  int batch, first_sample;

  __device__ __forceinline__ void stage(int first_input, int count, typename Kind<X>::Segment* tile) const {
    const bool vectors = batch % Kind<X>::COUNT == 0 && aligned(x, 16);
    for (int t = threadIdx.x; t < count * SEGMENTS; t += blockDim.x)
      stage_segment(x, first_input + t / SEGMENTS, first_sample + t % SEGMENTS * Kind<X>::COUNT, batch, vectors,
                    tile + t);
  }
};

// Images x (channels, height, width, batch) under a kernel whose top left corner lies on pixel (top, left): input
// i is tap i of the kernel, taps[i] = (row of its pixel relative to the corner's, kernel row, kernel column, 0).
template <typename X>
struct ImageRows {
  const X* x;
  const int4* taps;
  int batch, first_sample, height, width, top, left;

  __device__ __forceinline__ int row(int input) const {
    const int4 tap = taps[input];
    const bool inside = (unsigned)(top + tap.y) < (unsigned)height && (unsigned)(left + tap.z) < (unsigned)width;
    return inside ? top * width + left + tap.x : -1;
  }
  __device__ __forceinline__ void stage(int first_input, int count, typename Kind<X>::Segment* tile) const {
    const bool vectors = batch % Kind<X>::COUNT == 0 && aligned(x, 16);
    for (int t = threadIdx.x; t < count * SEGMENTS; t += blockDim.x)
      stage_segment(x, row(first_input + t / SEGMENTS), first_sample + t % SEGMENTS * Kind<X>::COUNT, batch,
                    vectors, tile + t);
  }
};

// Samples-first x (batch, n_in): each thread turns a block of 4 inputs and one segment of samples in its
// registers. Eight neighbouring threads write one row of the tile, hence no bank conflicts.
template <typename X>
struct SampleRows {
  const X* x;
  int batch, first_sample, n_in;

  __device__ __forceinline__ void load(int sample, int input, bool vectors, X (&values)[4]) const {
    const X* source = x + (size_t)sample * n_in + input;
    if (vectors && sample < batch) {
      Kind<X>::spread(*reinterpret_cast<const typename Kind<X>::Quad*>(source), values);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = sample < batch && input + i < n_in ? source[i] : Kind<X>::zero();
  }
  __device__ __forceinline__ void stage(int first_input, int count, typename Kind<X>::Segment* tile) const {
    const int COUNT = Kind<X>::COUNT;
    const bool vectors = n_in % 4 == 0 && first_input % 4 == 0 && aligned(x, sizeof(typename Kind<X>::Quad));
    for (int t = threadIdx.x; t < (count + 3) / 4 * SEGMENTS; t += blockDim.x) {
      const int segment = t % SEGMENTS, input = t / SEGMENTS * 4;
      X turned[4][COUNT];
#pragma unroll
      for (int s = 0; s < COUNT; ++s) {
        X values[4];
        load(first_sample + segment * COUNT + s, first_input + input, vectors, values);
#pragma unroll
        for (int i = 0; i < 4; ++i) turned[i][s] = values[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (input + i < count) tile[(input + i) * SEGMENTS + segment] = Kind<X>::segment(turned[i]);
    }
  }
};

// The row of zeros behind the rows of a chunk, in each of the buffers.
template <typename Segment>
__device__ __forceinline__ void clear_zero_rows(Segment* tile, int chunk_rows, int buffers) {
  for (int t = threadIdx.x; t < buffers * SEGMENTS; t += blockDim.x)
    tile[t / SEGMENTS * (chunk_rows + 1) * SEGMENTS + chunk_rows * SEGMENTS + t % SEGMENTS] = Segment{};
}

// ---------------------------------------------------------------------------------------------------------------
// y = W x, tiled
// ---------------------------------------------------------------------------------------------------------------

// One slice times one staged chunk. A lane keeps the sums of one row over its SHARE * COUNT samples in registers.
// Of a step it loads 4 weights (16 bytes) and 4 indices (8 bytes), and then 4 * SHARE segments of 16 bytes from
// shared memory, each of them used by no other lane: 6 registers of weights and indices to 64 of x.
template <typename X>
__device__ __forceinline__ void multiply(const PackedRows& packed, const Warp& warp, int chunk,
                                         const typename Kind<X>::Segment* tile,
                                         float (&sums)[SHARE][Kind<X>::COUNT]) {
  if (!warp.working) return;
  const Lane lane;
  const int end = packed.end(warp.slice, chunk);
  for (int step = packed.begin(warp.slice, chunk) + warp.part; step < end; step += warp.split) {
    const float4 w = packed.weights[(size_t)step * ROWS + lane.row];
    const ushort4 i = packed.inputs[(size_t)step * ROWS + lane.row];
    const float weights[4] = {w.x, w.y, w.z, w.w};
    const int inputs[4] = {i.x, i.y, i.z, i.w};
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int s = 0; s < SHARE; ++s) {
        float values[Kind<X>::COUNT];
        Kind<X>::unpack(tile[inputs[k] * SEGMENTS + lane.segment(s)], values);
#pragma unroll
        for (int v = 0; v < Kind<X>::COUNT; ++v) sums[s][v] += weights[k] * values[v];
      }
  }
}

// The sums over all chunks in which the block's rows read anything: while one chunk is multiplied the next is on
// its way to the other buffer.
template <typename X, typename Source>
__device__ __forceinline__ void gather(const Source& source, const PackedRows& packed, const Warp& warp, int n_in,
                                       typename Kind<X>::Segment* tile, float (&sums)[SHARE][Kind<X>::COUNT]) {
  int chunk = next_chunk(packed, warp, 0), buffer = 0;
  if (chunk == packed.n_chunks) return;  // the whole block: its rows read nothing
  clear_zero_rows(tile, packed.chunk_rows, min(2, packed.n_chunks));
  source.stage(chunk * packed.chunk_rows, min(packed.chunk_rows, n_in - chunk * packed.chunk_rows), tile);
  SK_COPY_COMMIT();
  while (chunk < packed.n_chunks) {
    const int following = next_chunk(packed, warp, chunk + 1);
    if (following < packed.n_chunks)
      source.stage(following * packed.chunk_rows, min(packed.chunk_rows, n_in - following * packed.chunk_rows),
                   tile + (1 - buffer) * packed.buffer_segments());
    SK_COPY_COMMIT();
    SK_COPY_WAIT(1);  // this chunk has come; the following one may be on its way
    __syncthreads();  // ... for every thread
    multiply<X>(packed, warp, chunk, tile + buffer * packed.buffer_segments(), sums);
    __syncthreads();  // nobody reads this buffer any more: the chunk after the following one may overwrite it
    chunk = following;
    buffer = 1 - buffer;
  }
}

// Adds what the warps that share a slice have summed, in the order of their parts; the first of them gets the
// sum. The scratch memory is that of the tile, which nobody needs any more.
template <int N>
__device__ __forceinline__ void add_parts(const Warp& warp, float* scratch, float (&sums)[SHARE][N]) {
  const int lane = threadIdx.x % 32, local = warp.slice - warp.first_slice;
  float* mine = scratch + (size_t)local * (warp.split - 1) * SHARE * N * 32 + lane;
  if (warp.part > 0)
#pragma unroll
    for (int i = 0; i < SHARE * N; ++i) mine[((warp.part - 1) * SHARE * N + i) * 32] = sums[i / N][i % N];
  __syncthreads();
  if (warp.part == 0)
    for (int part = 1; part < warp.split; ++part)
#pragma unroll
      for (int i = 0; i < SHARE * N; ++i) sums[i / N][i % N] += mine[((part - 1) * SHARE * N + i) * 32];
}

__device__ __forceinline__ float finish(float sum, float bias, int relu) {
  const float value = sum + bias;
  return relu && value < 0.0f ? 0.0f : value;  // not fmaxf, which would turn NaN into 0
}

// Writes the sums of a lane to row `row` of y (rows, batch), behind bias and ReLU.
template <int N>
__device__ __forceinline__ void store_row(float* y, size_t row, int batch, int first_sample, float bias, int relu,
                                          const float (&sums)[SHARE][N]) {
  const Lane lane;
  const bool vectors = batch % 4 == 0 && aligned(y, 16);
#pragma unroll
  for (int s = 0; s < SHARE; ++s)
#pragma unroll
    for (int v = 0; v < N; v += 4) {
      const int sample = first_sample + lane.segment(s) * N + v;
      float* destination = y + row * batch + sample;
      const float4 four = make_float4(finish(sums[s][v], bias, relu), finish(sums[s][v + 1], bias, relu),
                                      finish(sums[s][v + 2], bias, relu), finish(sums[s][v + 3], bias, relu));
      if (vectors && sample < batch) {
        *reinterpret_cast<float4*>(destination) = four;
      } else {
        if (sample < batch) destination[0] = four.x;
        if (sample + 1 < batch) destination[1] = four.y;
        if (sample + 2 < batch) destination[2] = four.z;
        if (sample + 3 < batch) destination[3] = four.w;
      }
    }
}

// y (n_out, batch) = W x (n_in, batch), or max(W x + bias, 0). Block: Tile<X>::SAMPLES samples of some slices;
// grid: row blocks, then tiles of samples. Shared memory: two buffers of chunk_rows + 1 rows of 128 bytes (one
// buffer for a single chunk), later what add_parts needs. Bank conflicts: none, see Lane.
template <typename X>
__global__ void __launch_bounds__(MAX_THREADS, 1)
gather_features(const X* __restrict__ x, const float4* __restrict__ weights, const ushort4* __restrict__ inputs,
                const int* __restrict__ steps, const int* __restrict__ outputs, const float* __restrict__ bias,
                float* __restrict__ y, int batch, int n_in, int n_slices, int n_chunks, int chunk_rows,
                int row_blocks, int split, int relu) {
  SK_DYNAMIC_SHARED(float4, shared);
  const PackedRows packed = {weights, inputs, steps, outputs, n_slices, n_chunks, chunk_rows};
  const Warp warp(blockIdx.x % row_blocks, split, n_slices);
  const int first_sample = blockIdx.x / row_blocks * Tile<X>::SAMPLES;
  const FeatureRows<X> source = {x, batch, first_sample};
  float sums[SHARE][Kind<X>::COUNT] = {};
  gather<X>(source, packed, warp, n_in, reinterpret_cast<typename Kind<X>::Segment*>(shared), sums);
  add_parts(warp, reinterpret_cast<float*>(shared), sums);
  const int row = warp.working && warp.part == 0 ? outputs[warp.slice * ROWS + Lane().row] : -1;
  if (row >= 0) store_row(y, row, batch, first_sample, bias ? bias[row] : 0.0f, relu, sums);
}

// y (n_out, positions, batch) = convolution of images x (channels, height, width, batch). The same as
// gather_features once for every output position: patches are never written to memory, their rows are read from
// the image while staging. corners[p] = (top, left) of position p. Grid: row blocks, then tiles, then positions.
template <typename X>
__global__ void __launch_bounds__(MAX_THREADS, 1)
gather_images(const X* __restrict__ x, const float4* __restrict__ weights, const ushort4* __restrict__ inputs,
              const int* __restrict__ steps, const int* __restrict__ outputs, const float* __restrict__ bias,
              float* __restrict__ y, int batch, int n_in, int n_slices, int n_chunks, int chunk_rows,
              int row_blocks, int split, int relu, const int4* __restrict__ taps, const int2* __restrict__ corners,
              int height, int width, int n_positions) {
  SK_DYNAMIC_SHARED(float4, shared);
  const PackedRows packed = {weights, inputs, steps, outputs, n_slices, n_chunks, chunk_rows};
  const Warp warp(blockIdx.x % row_blocks, split, n_slices);
  const int tiles = (batch + Tile<X>::SAMPLES - 1) / Tile<X>::SAMPLES;
  const int first_sample = blockIdx.x / row_blocks % tiles * Tile<X>::SAMPLES;
  const int position = blockIdx.x / row_blocks / tiles;
  const int2 corner = corners[position];
  const ImageRows<X> source = {x, taps, batch, first_sample, height, width, corner.x, corner.y};
  float sums[SHARE][Kind<X>::COUNT] = {};
  gather<X>(source, packed, warp, n_in, reinterpret_cast<typename Kind<X>::Segment*>(shared), sums);
  add_parts(warp, reinterpret_cast<float*>(shared), sums);
  const int row = warp.working && warp.part == 0 ? outputs[warp.slice * ROWS + Lane().row] : -1;
  if (row >= 0)
    store_row(y, (size_t)row * n_positions + position, batch, first_sample, bias ? bias[row] : 0.0f, relu, sums);
}

// y (batch, n_out) = x (batch, n_in) W^T. Results are turned in shared memory, so that a warp writes neighbouring
// neurons of a sample; its rows are one float longer than the block has neurons, which spreads them over the
// banks (two to four lanes still meet in one, once for a block).
template <typename X>
__global__ void __launch_bounds__(MAX_THREADS, 1)
gather_samples(const X* __restrict__ x, const float4* __restrict__ weights, const ushort4* __restrict__ inputs,
               const int* __restrict__ steps, const int* __restrict__ outputs, const float* __restrict__ bias,
               float* __restrict__ y, int batch, int n_in, int n_slices, int n_chunks, int chunk_rows,
               int row_blocks, int split, int relu, int n_out) {
  SK_DYNAMIC_SHARED(float4, shared);
  const PackedRows packed = {weights, inputs, steps, outputs, n_slices, n_chunks, chunk_rows};
  const Warp warp(blockIdx.x % row_blocks, split, n_slices);
  const int first_sample = blockIdx.x / row_blocks * Tile<X>::SAMPLES;
  const SampleRows<X> source = {x, batch, first_sample, n_in};
  float sums[SHARE][Kind<X>::COUNT] = {};
  gather<X>(source, packed, warp, n_in, reinterpret_cast<typename Kind<X>::Segment*>(shared), sums);
  add_parts(warp, reinterpret_cast<float*>(shared), sums);
  __syncthreads();  // the parts have been added: their memory becomes the output tile

  float* tile = reinterpret_cast<float*>(shared);
  const int rows = blockDim.x / 32 / split * ROWS, stride = rows + 1;
  const Lane lane;
  if (warp.part == 0)
#pragma unroll
    for (int i = 0; i < SHARE * Kind<X>::COUNT; ++i) {
      const int s = i / Kind<X>::COUNT, v = i % Kind<X>::COUNT;
      tile[(lane.segment(s) * Kind<X>::COUNT + v) * stride + (warp.slice - warp.first_slice) * ROWS + lane.row] =
          sums[s][v];
    }
  __syncthreads();
  for (int t = threadIdx.x; t < Tile<X>::SAMPLES * rows; t += blockDim.x) {
    const int sample = first_sample + t / rows, place = warp.first_slice * ROWS + t % rows;
    const int row = sample < batch && place < n_slices * ROWS ? outputs[place] : -1;
    if (row >= 0)
      y[(size_t)sample * n_out + row] = finish(tile[t / rows * stride + t % rows], bias ? bias[row] : 0.0f, relu);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// y = W x for few samples
// ---------------------------------------------------------------------------------------------------------------

// Adds N values over the 32 lanes of a warp; value k ends in values[0] of the lanes from k * 32 / N on. At first
// each exchange also halves the values that a lane looks after: N - 1 + log2(32 / N) shuffles, not 5 N.
template <int N>
__device__ __forceinline__ void add_over_lanes(float (&values)[N]) {
  const int lane = threadIdx.x % 32;
  int held = N;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    if (held > 1) {
      held /= 2;
      const bool upper = lane & offset;
#pragma unroll
      for (int i = 0; i < N / 2; ++i)
        if (i < held) {
          const float sent = upper ? values[i] : values[i + held];
          const float kept = upper ? values[i + held] : values[i];
          values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, offset);
        }
    } else {
      values[0] += __shfl_xor_sync(0xffffffffu, values[0], offset);
    }
  }
}

// y = W x for any strides of x and y: a warp a row of W, its lanes take the row's stored weights in turns and
// read x through the caches; SAMPLES samples at a time. No shared memory. Row r owns the entries starts[r] to
// starts[r + 1]; the weight of entry e is values[positions[e]], or values[e] without positions, so weights need
// not be packed and the transposed index serves as well. Grid: row blocks, then groups of samples.
template <typename X, typename Index, int SAMPLES>
__global__ void __launch_bounds__(FEW_THREADS)
gather_few(const X* __restrict__ x, const float* __restrict__ values, const int* __restrict__ positions,
           const Index* __restrict__ inputs, const int* __restrict__ starts, const float* __restrict__ bias,
           float* __restrict__ y, int n_rows, int batch, int row_blocks, int relu, int x_input_stride,
           int x_sample_stride, int y_row_stride, int y_sample_stride) {
  const int row = blockIdx.x % row_blocks * (FEW_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_sample = blockIdx.x / row_blocks * SAMPLES;
  if (row >= n_rows) return;  // the whole warp
  float sums[SAMPLES] = {};
  const int end = starts[row + 1];
  for (int entry = starts[row] + lane; entry < end; entry += 32) {
    const float weight = values[positions ? positions[entry] : entry];
    const X* source = x + (size_t)inputs[entry] * x_input_stride + (size_t)first_sample * x_sample_stride;
#pragma unroll
    for (int s = 0; s < SAMPLES; ++s)
      if (first_sample + s < batch) sums[s] += weight * to_float(source[(size_t)s * x_sample_stride]);
  }
  add_over_lanes(sums);
  const int sample = first_sample + lane / (32 / SAMPLES);
  if (lane % (32 / SAMPLES) == 0 && sample < batch)
    y[(size_t)row * y_row_stride + (size_t)sample * y_sample_stride] =
        finish(sums[0], bias ? bias[row] : 0.0f, relu);
}

// ---------------------------------------------------------------------------------------------------------------
// g x^T at the stored places
// ---------------------------------------------------------------------------------------------------------------

// The gradient of this lane's row, for the samples whose x it multiplies.
template <typename X>
__device__ __forceinline__ void load_gradient(const X* g, int row, int batch, int first_sample,
                                              float (&values)[SHARE][Kind<X>::COUNT]) {
  const Lane lane;
  const bool vectors = batch % Kind<X>::COUNT == 0 && aligned(g, 16);
#pragma unroll
  for (int s = 0; s < SHARE; ++s) {
    const int sample = first_sample + lane.segment(s) * Kind<X>::COUNT;
    const X* source = g + (size_t)row * batch + sample;
    if (row >= 0 && vectors && sample < batch) {
      Kind<X>::unpack(*reinterpret_cast<const typename Kind<X>::Segment*>(source), values[s]);
    } else {
#pragma unroll
      for (int v = 0; v < Kind<X>::COUNT; ++v)
        values[s][v] = row >= 0 && sample + v < batch ? to_float(source[v]) : 0.0f;
    }
  }
}

// What one tile of samples adds to the weights of one slice in one chunk. Each of a row's two lanes has the dot
// products over its own samples; they exchange halves, so that each completes two of a step's four weights, and
// adds them to the partial sums in shared memory, which no other lane touches: (step, row, 4) floats, 256 bytes a
// step, without bank conflicts.
template <typename X>
__device__ __forceinline__ void add_outer(const ushort4* inputs, int n_steps, const Warp& warp,
                                          const typename Kind<X>::Segment* tile,
                                          const float (&gradient)[SHARE][Kind<X>::COUNT], float2* partial) {
  const Lane lane;
  for (int step = warp.part; step < n_steps; step += warp.split) {
    const ushort4 i = inputs[(size_t)step * ROWS + lane.row];
    const int rows[4] = {i.x, i.y, i.z, i.w};
    float dots[4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int s = 0; s < SHARE; ++s) {
        float values[Kind<X>::COUNT];
        Kind<X>::unpack(tile[rows[k] * SEGMENTS + lane.segment(s)], values);
#pragma unroll
        for (int v = 0; v < Kind<X>::COUNT; ++v) dots[k] += gradient[s][v] * values[v];
      }
    const float first = __shfl_xor_sync(0xffffffffu, lane.half ? dots[0] : dots[2], 1);
    const float second = __shfl_xor_sync(0xffffffffu, lane.half ? dots[1] : dots[3], 1);
    float2& sum = partial[(step * ROWS + lane.row) * 2 + lane.half];
    sum.x += (lane.half ? dots[2] : dots[0]) + first;
    sum.y += (lane.half ? dots[3] : dots[1]) + second;
  }
}

// out[position of a weight] = sum over the batch of g[its row, :] * x[its input, :]. Block: some slices in one
// chunk, over the whole batch, so that nobody else adds to its weights; grid: chunks, then row blocks. Shared
// memory: the buffers of gather_features (two if there is more than one tile of samples), behind them
// `partial_steps` steps of partial sums a slice.
template <typename X>
__global__ void __launch_bounds__(MAX_THREADS, 1)
outer(const X* __restrict__ g, const X* __restrict__ x, const ushort4* __restrict__ inputs,
      const int* __restrict__ steps, const int* __restrict__ outputs, const int4* __restrict__ positions,
      float* __restrict__ out, int batch, int n_in, int n_slices, int n_chunks, int chunk_rows, int split,
      int partial_steps) {
  SK_DYNAMIC_SHARED(float4, shared);
  typedef typename Kind<X>::Segment Segment;
  const PackedRows packed = {nullptr, inputs, steps, outputs, n_slices, n_chunks, chunk_rows};
  const int chunk = blockIdx.x % n_chunks, first_input = chunk * chunk_rows;
  const Warp warp(blockIdx.x / n_chunks, split, n_slices);
  if (!has_steps(packed, warp, chunk)) return;  // the whole block
  const int tiles = (batch + Tile<X>::SAMPLES - 1) / Tile<X>::SAMPLES, buffers = min(2, tiles);
  const int rows = min(chunk_rows, n_in - first_input);
  const Lane lane;
  const int row = warp.working ? outputs[warp.slice * ROWS + lane.row] : -1;
  const int first_step = warp.working ? packed.begin(warp.slice, chunk) : 0;
  const int n_steps = warp.working ? packed.end(warp.slice, chunk) - first_step : 0;
  Segment* tile = reinterpret_cast<Segment*>(shared);
  float2* partial = reinterpret_cast<float2*>(shared + buffers * packed.buffer_segments()) +
                    (size_t)(warp.slice - warp.first_slice) * partial_steps * ROWS * 2;
  for (int step = warp.part; step < n_steps; step += split)
    partial[(step * ROWS + lane.row) * 2 + lane.half] = make_float2(0.0f, 0.0f);

  clear_zero_rows(tile, chunk_rows, buffers);
  FeatureRows<X>{x, batch, 0}.stage(first_input, rows, tile);
  SK_COPY_COMMIT();
  for (int t = 0; t < tiles; ++t) {
    if (t + 1 < tiles)
      FeatureRows<X>{x, batch, (t + 1) * Tile<X>::SAMPLES}.stage(first_input, rows,
                                                                tile + (t + 1) % 2 * packed.buffer_segments());
    SK_COPY_COMMIT();
    SK_COPY_WAIT(1);  // this tile has come; the next one may be on its way
    float gradient[SHARE][Kind<X>::COUNT];
    load_gradient(g, row, batch, t * Tile<X>::SAMPLES, gradient);
    __syncthreads();
    add_outer<X>(inputs + (size_t)first_step * ROWS, n_steps, warp, tile + t % 2 * packed.buffer_segments(),
                 gradient, partial);
    __syncthreads();  // before the tile after the next one overwrites this buffer
  }

  for (int step = warp.part; step < n_steps; step += split) {
    const int4 four = positions[(size_t)(first_step + step) * ROWS + lane.row];
    const int mine[2] = {lane.half ? four.z : four.x, lane.half ? four.w : four.y};
    const float2 sum = partial[(step * ROWS + lane.row) * 2 + lane.half];
    if (mine[0] >= 0) out[mine[0]] = sum.x;
    if (mine[1] >= 0) out[mine[1]] = sum.y;
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Packing
// ---------------------------------------------------------------------------------------------------------------

// packed[i] = values[positions[i]], zero where the position is -1; four at a time. It runs before each product
// whose weights may have changed: one pass over the weights, a few percent of the product itself.
__global__ void __launch_bounds__(PACK_THREADS)
pack(const float* __restrict__ values, const int4* __restrict__ positions, float4* __restrict__ packed,
     int count) {
  const int i = blockIdx.x * PACK_THREADS + threadIdx.x;
  if (i >= count) return;
  const int4 four = positions[i];
  packed[i] = make_float4(four.x < 0 ? 0.0f : values[four.x], four.y < 0 ? 0.0f : values[four.y],
                          four.z < 0 ? 0.0f : values[four.z], four.w < 0 ? 0.0f : values[four.w]);
}
