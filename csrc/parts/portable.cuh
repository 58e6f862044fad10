#pragma once
#include <cstddef>
#include <cstdint>

// The only seam between kernels and what runs them. Compiled by nvcc they run on a GPU; compiled by
// the host's compiler, with tests/emulator on the include path, the same sources run on the CPU. A
// kernel says `__global__`, `threadIdx` and so on as usual, and everything else that depends on the
// hardware by the functions below.
#ifdef __CUDACC__
#include <cuda_runtime.h>

namespace cwkernels {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

// --- Order ---------------------------------------------------------------------------------------

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp(unsigned mask = kFullWarp) { __syncwarp(mask); }
// What this thread wrote is seen by all of the device before what it writes next.
__device__ __forceinline__ void fence_device() { __threadfence(); }
// The number of arrivals before this one. The counter wraps to 0 after `last`, so it needs no
// reset.
__device__ __forceinline__ unsigned take_ticket(unsigned* counter, unsigned last) {
  return atomicInc(counter, last);
}
// Reads what other blocks of this launch wrote before a ticket: past L1, which is not coherent.
template <class T>
__device__ __forceinline__ T load_shared_by_blocks(const T* source) {
  return __ldcg(source);
}
// Reads what no one writes once wait_for_previous has returned: from L2, not by ld.global.nc, whose
// cache may hold what was there before, as this launch begins while the one before still writes.
template <class T>
__device__ __forceinline__ T load_global(const T* source) {
  return __ldcg(source);
}

// Two floats to where 8 bytes begin, by one instruction: nvcc makes two of a struct's.
__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  asm volatile("st.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(first), "f"(second) : "memory");
}

// With programmatic dependent launch a kernel's blocks start while the kernel before still runs.
// Every block, one without work too, waits before it reads, writes or exits.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets blocks of the next kernel start, up to their wait.
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// --- Warps ---------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T shuffle(T value, int source, unsigned mask = kFullWarp) {
  return __shfl_sync(mask, value, source);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int other, unsigned mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, other);
}
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int distance, unsigned mask = kFullWarp) {
  return __shfl_down_sync(mask, value, distance);
}
__device__ __forceinline__ unsigned votes(bool vote, unsigned mask = kFullWarp) {
  return __ballot_sync(mask, vote);
}

// A product that is rounded by itself: nvcc would fuse it with a sum behind it, whose bits would
// then depend on what is summed where.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// --- Shared memory -------------------------------------------------------------------------------

// Hands out the block's dynamic shared memory, piece after piece on boundaries of 128 bytes. Every
// thread of a block takes the same pieces in the same order. The launch asks for the sum of
// shared_bytes<T>(count) over them.
template <class T>
__host__ __device__ constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + 127) / 128 * 128;
}

class Shared {
 public:
  template <class T>
  __device__ __forceinline__ T* take(size_t count) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* piece = reinterpret_cast<T*>(bytes + used_);
    used_ += shared_bytes<T>(count);
    return piece;
  }

 private:
  size_t used_ = 0;
};

// Copies kBytes (4, 8 or 16) from global to shared memory, both aligned to that, or writes zeros if
// not `live`; there by copy_async_wait of the group that copy_async_commit closes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool live = true) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = live ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from),
                 "r"(bytes), "n"(kBytes)
                 : "memory");
  }
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's groups are under way. Others' copies are seen after
// a barrier behind it.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- Matrix units --------------------------------------------------------------------------------

struct bf16 {
  uint16_t bits;
};

// Two floats to bf16, round to nearest even; `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float to_float(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float low_to_float(uint32_t packed) {
  return __uint_as_float(packed << 16);
}
__device__ __forceinline__ float high_to_float(uint32_t packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

// A float rounded to tf32, to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t float_to_bits(float value) { return __float_as_uint(value); }

// d += a b by a warp, a [16, 8] and b [8, 8] in tf32, d [16, 8]: the layouts of mma.m16n8k8.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += a b by a warp, a [16, 16] and b [16, 8] in bf16, d [16, 8]: the layouts of mma.m16n8k16.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8 x 8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(uint32_t (&d)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&d)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

// --- Launches (host) -----------------------------------------------------------------------------

// What the device of the launch is: kernels that persist ask for a multiple of its processors.
struct Device {
  int capability;       // 80, 90, ...
  int processors;       // streaming multiprocessors
  size_t shared_bytes;  // the most dynamic shared memory of a block
};

inline Device current_device() {
  int id = 0, major = 0, minor = 0, processors = 0, shared = 0;
  cudaGetDevice(&id);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, id);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  return {major * 10 + minor, processors, static_cast<size_t>(shared)};
}

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Launches kernel(params) on `stream`, a cudaStream_t. Returns the launch's cudaError_t. The kernel
// calls wait_for_previous: on sm_90 and later it overlaps the end of the launch before.
template <class Params>
int launch(void (*kernel)(Params), Grid grid, int threads, size_t shared, void* stream,
           const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (shared > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = current_device().capability >= 90 ? 1 : 0;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, params));
}

}  // namespace cwkernels
#else
#include "emulator.h"
#endif
