// Runs kernels.cu without a GPU: every thread of a block is a fiber, and a shuffle waits for the other lanes of its
// warp. Blocks run one after the other. For the tests: it checks indices and arithmetic, not speed, not races.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <type_traits>
#include <vector>

struct Index {
  unsigned x;
};
static Index host_thread, host_block, host_block_size, host_grid;
#define threadIdx host_thread
#define blockIdx host_block
#define blockDim host_block_size
#define gridDim host_grid
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(x)

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};
static std::vector<Fiber> fibers;
static std::vector<double> offered;
static ucontext_t scheduler;
static const std::function<void()>* body;

static void resume_scheduler() { swapcontext(&fibers[host_thread.x].context, &scheduler); }

template <class A>
A __shfl_xor_sync(unsigned, A x, int lanes) {
  offered[host_thread.x] = double(x);
  resume_scheduler();  // all lanes have offered theirs
  const double other = offered[host_thread.x ^ unsigned(lanes)];
  resume_scheduler();  // all lanes have read
  return A(other);
}

template <class A>
void atomicAdd(A* target, A x) {
  *target += x;
}

static void run_fiber() {
  (*body)();
  fibers[host_thread.x].done = true;
  resume_scheduler();
}

static void launch(int64_t blocks, int64_t threads, const std::function<void()>& kernel) {
  body = &kernel;
  host_grid.x = unsigned(blocks);
  host_block_size.x = unsigned(threads);
  fibers.resize(threads);
  offered.resize(threads);
  for (host_block.x = 0; host_block.x < blocks; host_block.x++) {
    for (Fiber& fiber : fibers) {
      fiber.stack.resize(1 << 16);
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      makecontext(&fiber.context, run_fiber, 0);
    }
    for (bool working = true; working;) {
      working = false;
      size_t done = 0;
      for (unsigned t = 0; t < threads; t++) {
        if (fibers[t].done) {
          done++;
          continue;
        }
        host_thread.x = t;
        swapcontext(&scheduler, &fibers[t].context);
        working = true;
      }
      if (done != 0 && done != size_t(threads)) {
        std::fprintf(stderr, "threads of one block took different numbers of shuffles\n");
        std::abort();
      }
    }
  }
}

template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, Arguments... arguments) {
  launch(blocks, threads, [&] { kernel(arguments...); });
}
#define KSDA_UNPACK(...) __VA_ARGS__
#define KSDA_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), launch_kernel(KSDA_UNPACK kernel, blocks, threads, __VA_ARGS__))

static int cudaGetLastError_() { return 0; }
#define cudaGetLastError cudaGetLastError_

#include "kernels.cu"

// value, locations, weights, out / the gradients: addresses; sizes: height and width by turns.
static ksda::Shape shape(const int64_t* n, const int64_t* sizes, const int64_t* starts) {
  ksda::Shape s{n[0], n[1], n[2], n[3], n[4], int(n[5]), int(n[6])};
  for (int l = 0; l < s.L; l++) s.height[l] = int(sizes[2 * l]), s.width[l] = int(sizes[2 * l + 1]), s.start[l] = starts[l];
  return s;
}

extern "C" int host_forward(const int64_t* n, const int64_t* sizes, const int64_t* starts, int value_kind,
                            int coordinate_kind, void** tensors) {
  return ksda::forward(shape(n, sizes, starts), ksda::Kind(value_kind), ksda::Kind(coordinate_kind), tensors[0],
                       tensors[1], tensors[2], tensors[3], nullptr);
}

extern "C" int host_backward(const int64_t* n, const int64_t* sizes, const int64_t* starts, int value_kind,
                             int coordinate_kind, void** tensors) {
  return ksda::backward(shape(n, sizes, starts), ksda::Kind(value_kind), ksda::Kind(coordinate_kind), tensors[0],
                        tensors[1], tensors[2], tensors[3], tensors[4], tensors[5], tensors[6], nullptr);
}
