// The C functions: arguments checked, weights counted, the instruction set chosen, scratch kept per thread.
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <initializer_list>

#include "batchnorm.h"
#include "call.h"
#include "pool.h"
#include "tune.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

static const Level* choose_level() {
#if defined(BN_X86_LEVELS)
  const char* cap = getenv("BATCHNORM_ISA");
  const int most = !cap ? 9 : !strcmp(cap, "baseline") ? 2 : !strcmp(cap, "v3") ? 3 : !strcmp(cap, "v4") ? 4 : 9;
  __builtin_cpu_init();
  if (most >= 4 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return most > 4 && __builtin_cpu_supports("avx512bf16") ? v4_bf16_level() : v4_level();
  if (most >= 3 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return v3_level();
#endif
  return baseline_level();
}
static const Level* level() {
  static const Level* const chosen = choose_level();
  return chosen;
}

// Memory for per-channel vectors, kept between calls: a small call should not pay for the allocator.
namespace {
struct Scratch {
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { free(memory); }
  void* take(size_t bytes) {
    if (bytes > size) {
      free(memory);
      memory = malloc(bytes);
      size = memory ? bytes : 0;
    }
    return memory;
  }
  void give_back() {
    if (size > (size_t)16 << 20) free(memory), memory = nullptr, size = 0;
  }
};
thread_local Scratch scratch;

struct Given {  // what every function is given
  int dtype;
  const int64_t* dims;
  const void* w;
  const int64_t* wdims;
  int64_t elements() const { return element_count(dims, 5); }
  int64_t statistics() const { return dims[1] * dims[3]; }
  int item() const { return dtype == BN_FLOAT64 ? 8 : dtype == BN_FLOAT32 ? 4 : 2; }
  int statistic() const { return dtype == BN_FLOAT64 ? 8 : 4; }
};
}  // namespace

static int check(const Given& in, int activation) {
  if (in.dtype < BN_FLOAT32 || in.dtype > BN_BFLOAT16) return BN_BAD_DTYPE;
  if (activation != BN_NONE && activation != BN_RELU) return BN_BAD_ACTIVATION;
  if (!in.dims) return BN_NULL;
  if (in.elements() < 0) return BN_BAD_SIZE;
  const int64_t kept[2] = {in.dims[1], in.dims[3]};
  if (element_count(kept, 2) < 0) return BN_BAD_SIZE;
  if (!in.w) return BN_OK;
  if (!in.wdims) return BN_NULL;
  const int64_t full[4] = {in.dims[0], in.dims[1], in.dims[2], in.dims[4]};
  for (int i = 0; i < 4; i++)
    if (in.wdims[i] != full[i] && in.wdims[i] != 1) return BN_BAD_WEIGHTS;
  return BN_OK;
}

// Sums of weights per group in double, and whether any weight is negative.
static bool sum_weights(const Given& in, double* count) {
  const int64_t* m = in.wdims;
  const int64_t groups = in.dims[1], inner = m[2] * m[3];
  double times = 1;  // how many elements of one channel share a weight
  const int64_t full[4] = {in.dims[0], 1, in.dims[2], in.dims[4]};
  for (int i = 0; i < 4; i++)
    if (i != 1 && m[i] == 1) times *= (double)full[i];
  bool negative = false;
  for (int64_t g = 0; g < groups; g++) {
    if (g > 0 && m[1] == 1) {
      count[g] = count[0];
      continue;
    }
    double sum[8] = {};
    for (int64_t a = 0; a < m[0]; a++) {
      const int64_t at = (a * m[1] + g) * inner;
      auto add = [&](const auto* w) {
        int below[8] = {};
        int64_t i = 0;
        for (; i + 8 <= inner; i += 8)
          for (int k = 0; k < 8; k++) sum[k] += (double)w[i + k], below[k] |= w[i + k] < 0;
        for (; i < inner; i++) sum[0] += (double)w[i], below[0] |= w[i] < 0;
        for (int k = 0; k < 8; k++) negative |= below[k] != 0;
      };
      if (in.dtype == BN_FLOAT64) add((const double*)in.w + at);
      else add((const float*)in.w + at);
    }
    count[g] = times * (((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])));
  }
  return negative;
}

static void put(const Given& in, void* vector, int64_t i, double value) {
  if (in.dtype == BN_FLOAT64) ((double*)vector)[i] = value;
  else ((float*)vector)[i] = (float)value;
}

static int write_count(const Given& in, void* count) {
  const int64_t groups = in.dims[1];
  const double all = (double)in.dims[0] * (double)in.dims[2] * (double)in.dims[4];
  double* sums = in.w ? (double*)scratch.take(sizeof(double) * (size_t)(groups + 1)) : nullptr;
  if (in.w && !sums) return BN_NO_MEMORY;
  if (in.w && sum_weights(in, sums)) return BN_NEGATIVE_WEIGHT;
  for (int64_t g = 0; count && g < groups; g++) put(in, count, g, sums ? sums[g] : all);
  return BN_OK;
}

// Below this many bytes a call is over before a clock could tell ways apart.
static const int64_t kWorthLearning = (int64_t)1 << 20;

static void learn_and_run(Call& call, const Given& in, const Traffic& traffic) {
  Plan& p = call.plan;
  const int64_t bytes = p.groups * p.rows * p.row_elements * traffic.item;
  if (bytes < kWorthLearning || (p.ways & (p.ways - 1)) == 0 || !learns()) return level()->run[in.dtype](call);
  const Question question = {call.steps, in.dtype, traffic.arrays, pool_threads(), p.by_rows, bytes,
                             bytes_in_a_row(p, traffic.item), p.ways};
  const Tuner::Answer answer = tuner().ask(question, p.guess);
  take(p, answer.way);
  const auto begin = std::chrono::steady_clock::now();
  level()->run[in.dtype](call);
  tuner().tell(answer, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

static int run(Call& call, const Given& in) {
  Traffic traffic;
  traffic.item = in.item();
  traffic.statistic = in.statistic();
  traffic.reduces = call.steps & (kMoments | kSums);
  traffic.applies = call.steps & (kStandardize | kInput);
  traffic.arrays = traffic.applies;
  traffic.in_place = false;
  for (const void* read : {call.x, call.dy, call.residual, call.y})
    if (read) traffic.arrays++, traffic.in_place |= call.out == read || call.d_residual == read;
  if (call.d_residual) traffic.arrays++;
  call.plan = make_plan(in.dims, in.w, in.wdims, traffic, pool_threads());
  const size_t all = (size_t)in.statistics();
  if (all == 0) return BN_OK;
  call.coefficient_stride = (int64_t)((all + 127) / 64 * 64);
  const size_t partial = sizeof(double) * 3 * (size_t)call.plan.segments * all;
  const size_t coefficient = (size_t)in.statistic() * kCoefficients * (size_t)call.coefficient_stride;
  const size_t first = (partial + 63) / 64 * 64;
  char* memory = (char*)scratch.take(first + coefficient + 64);
  if (!memory) return BN_NO_MEMORY;
  call.partial = (double*)memory;
  call.coefficient = memory + first;
  if (in.elements() == 0) {  // nothing to walk: every sum is 0
    if (call.steps & kMoments)
      for (size_t k = 0; k < all; k++) {
        put(in, call.mean, (int64_t)k, 0), put(in, call.variance, (int64_t)k, 0);
        if (call.remainder) put(in, call.remainder, (int64_t)k, 0);
      }
    if (call.steps & kSums)
      for (size_t k = 0; k < all; k++) put(in, call.sum_dy, (int64_t)k, 0), put(in, call.sum_dy_xh, (int64_t)k, 0);
    return BN_OK;
  }
  learn_and_run(call, in, traffic);
  scratch.give_back();
  return BN_OK;
}

static bool missing(const void* p, int64_t n) { return n > 0 && !p; }

static int forward(const Given& in, int steps, const void* x, const void* residual, const void* mean,
                   const void* remainder, const void* variance, void* count, double epsilon, const void* scale,
                   const void* offset, int activation, void* y) {
  if (int code = check(in, activation)) return code;
  const int64_t n = in.elements(), k = in.statistics();
  if (missing(x, n) || missing(mean, k) || missing(variance, k) || ((steps & kStandardize) && missing(y, n))) return BN_NULL;
  // Without a place for the remainder y would depend on whether the caller asked for it: refuse.
  if (steps == (kMoments | kStandardize) && missing(remainder, k)) return BN_NULL;
  if (steps & kMoments)
    if (int code = write_count(in, count)) return code;
  Call call = {};
  call.steps = steps;
  call.x = x, call.residual = residual, call.out = y;
  call.epsilon = epsilon, call.scale = scale, call.offset = offset, call.relu = activation == BN_RELU;
  call.mean = (void*)mean, call.remainder = (void*)remainder, call.variance = (void*)variance;
  return run(call, in);
}

static int backward(const Given& in, int steps, const void* x, const void* dy, const void* y, const void* count,
                    const void* mean, const void* remainder, const void* variance, double epsilon, const void* scale,
                    const void* offset, int activation, const void* live, int frozen, const void* sum_dy,
                    const void* sum_dy_xh, void* dx, void* d_residual) {
  if (int code = check(in, activation)) return code;
  const int64_t n = in.elements(), k = in.statistics();
  if (missing(x, n) || missing(dy, n) || missing(mean, k) || missing(variance, k)) return BN_NULL;
  if (((steps & kSums) || !frozen) && (missing(sum_dy, k) || missing(sum_dy_xh, k))) return BN_NULL;
  if ((steps & kInput) && (missing(dx, n) || (!frozen && missing(count, in.dims[1])))) return BN_NULL;
  Call call = {};
  call.steps = steps;
  call.x = x, call.dy = dy, call.out = dx, call.d_residual = d_residual;
  call.relu = activation == BN_RELU, call.y = call.relu ? y : nullptr;
  call.epsilon = epsilon, call.scale = scale, call.offset = offset;
  call.mean = (void*)mean, call.remainder = (void*)remainder, call.variance = (void*)variance;
  call.count = count, call.live = live, call.frozen = frozen != 0;
  call.sum_dy = (void*)sum_dy, call.sum_dy_xh = (void*)sum_dy_xh;
  return run(call, in);
}

extern "C" {

int bn_moments(int dtype, const int64_t dims[5], const void* x, const void* w, const int64_t wdims[4], void* mean,
               void* remainder, void* variance, void* count) {
  return forward({dtype, dims, w, wdims}, kMoments, x, nullptr, mean, remainder, variance, count, 0, nullptr, nullptr,
                 BN_NONE, nullptr);
}

int bn_standardize_add(int dtype, const int64_t dims[5], const void* x, const void* residual, const void* w,
                       const int64_t wdims[4], const void* mean, const void* remainder, const void* variance,
                       double epsilon, const void* scale, const void* offset, int activation, void* y) {
  return forward({dtype, dims, w, wdims}, kStandardize, x, residual, mean, remainder, variance, nullptr, epsilon, scale,
                 offset, activation, y);
}

int bn_standardize(int dtype, const int64_t dims[5], const void* x, const void* w, const int64_t wdims[4],
                   const void* mean, const void* remainder, const void* variance, double epsilon, const void* scale,
                   const void* offset, int activation, void* y) {
  return bn_standardize_add(dtype, dims, x, nullptr, w, wdims, mean, remainder, variance, epsilon, scale, offset,
                            activation, y);
}

int bn_forward_add(int dtype, const int64_t dims[5], const void* x, const void* residual, const void* w,
                   const int64_t wdims[4], double epsilon, const void* scale, const void* offset, int activation,
                   void* mean, void* remainder, void* variance, void* count, void* y) {
  return forward({dtype, dims, w, wdims}, kMoments | kStandardize, x, residual, mean, remainder, variance, count, epsilon,
                 scale, offset, activation, y);
}

int bn_forward(int dtype, const int64_t dims[5], const void* x, const void* w, const int64_t wdims[4], double epsilon,
               const void* scale, const void* offset, int activation, void* mean, void* remainder, void* variance,
               void* count, void* y) {
  return bn_forward_add(dtype, dims, x, nullptr, w, wdims, epsilon, scale, offset, activation, mean, remainder, variance,
                        count, y);
}

int bn_backward_sums_add(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* y, const void* w,
                         const int64_t wdims[4], const void* mean, const void* remainder, const void* variance,
                         double epsilon, const void* scale, const void* offset, int activation, void* sum_dy,
                         void* sum_dy_xh) {
  return backward({dtype, dims, w, wdims}, kSums, x, dy, y, nullptr, mean, remainder, variance, epsilon, scale, offset,
                  activation, nullptr, 0, sum_dy, sum_dy_xh, nullptr, nullptr);
}

int bn_backward_sums(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* w,
                     const int64_t wdims[4], const void* mean, const void* remainder, const void* variance,
                     double epsilon, const void* scale, const void* offset, int activation, void* sum_dy,
                     void* sum_dy_xh) {
  return bn_backward_sums_add(dtype, dims, x, dy, nullptr, w, wdims, mean, remainder, variance, epsilon, scale, offset,
                              activation, sum_dy, sum_dy_xh);
}

int bn_backward_input_add(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* y, const void* w,
                          const int64_t wdims[4], const void* count, const void* mean, const void* remainder,
                          const void* variance, double epsilon, const void* scale, const void* offset, int activation,
                          const void* live, int frozen, const void* sum_dy, const void* sum_dy_xh, void* dx,
                          void* d_residual) {
  return backward({dtype, dims, w, wdims}, kInput, x, dy, y, count, mean, remainder, variance, epsilon, scale, offset,
                  activation, live, frozen, sum_dy, sum_dy_xh, dx, d_residual);
}

int bn_backward_input(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* w,
                      const int64_t wdims[4], const void* count, const void* mean, const void* remainder,
                      const void* variance, double epsilon, const void* scale, const void* offset, int activation,
                      const void* live, int frozen, const void* sum_dy, const void* sum_dy_xh, void* dx) {
  return bn_backward_input_add(dtype, dims, x, dy, nullptr, w, wdims, count, mean, remainder, variance, epsilon, scale,
                               offset, activation, live, frozen, sum_dy, sum_dy_xh, dx, nullptr);
}

int bn_backward_add(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* y, const void* w,
                    const int64_t wdims[4], const void* count, const void* mean, const void* remainder,
                    const void* variance, double epsilon, const void* scale, const void* offset, int activation,
                    const void* live, int frozen, void* sum_dy, void* sum_dy_xh, void* dx, void* d_residual) {
  return backward({dtype, dims, w, wdims}, kSums | kInput, x, dy, y, count, mean, remainder, variance, epsilon, scale,
                  offset, activation, live, frozen, sum_dy, sum_dy_xh, dx, d_residual);
}

int bn_backward(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* w, const int64_t wdims[4],
                const void* count, const void* mean, const void* remainder, const void* variance, double epsilon,
                const void* scale, const void* offset, int activation, const void* live, int frozen, void* sum_dy,
                void* sum_dy_xh, void* dx) {
  return bn_backward_add(dtype, dims, x, dy, nullptr, w, wdims, count, mean, remainder, variance, epsilon, scale, offset,
                         activation, live, frozen, sum_dy, sum_dy_xh, dx, nullptr);
}

const char* bn_error(int code) {
  switch (code) {
    case BN_OK: return "no error";
    case BN_BAD_DTYPE: return "dtype must be 0 (float32), 1 (float64), 2 (float16) or 3 (bfloat16)";
    case BN_BAD_SIZE: return "sizes must be >= 0 and their product must fit in memory";
    case BN_NULL: return "a required pointer is NULL";
    case BN_BAD_WEIGHTS: return "each size of the weights must be 1 or the size of that axis of x";
    case BN_NO_MEMORY: return "out of memory for per-channel scratch";
    case BN_NEGATIVE_WEIGHT: return "batch_weights must not be negative: weight 0 leaves a value out";
    case BN_BAD_ACTIVATION: return "activation must be 0 (none) or 1 (relu)";
    default: return "unknown error code";
  }
}

int bn_abi_version(void) { return 3; }
const char* bn_isa(void) { return level()->name; }
void bn_set_threads(int n) { pool_set_threads(n); }
int bn_get_threads(void) { return pool_threads(); }
size_t bn_learned(char* text, size_t size) { return tuner().describe(text, size); }
int bn_borrow_openmp(const char* path) { return pool_borrow_openmp(path); }

int bn_advise_huge(void* p, size_t n) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096, from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + n) / page * page;
  if (!p || n < BN_HUGE || to <= from) return 0;
  // A recycled block is there at both ends; each page that is asked about is a system call.
  const uintptr_t ends[] = {to - page, from};
  for (const uintptr_t end : ends) {
    unsigned char there = 1;
    if (mincore((void*)end, page, &there) != 0 || !(there & 1)) return madvise((void*)from, to - from, MADV_HUGEPAGE) == 0;
  }
#else
  (void)p, (void)n;
#endif
  return 0;
}

}  // extern "C"
