// Times the kernels and copies of the same tensor on the library's own threads, taking turns, and prints CSV.
//   bench [rounds [seconds [threads [type [layout [N C POSITIONS]]]]]]
//   type float32|bfloat16, layout first|last, "all" for both; threads 0: as the library has them; N C POSITIONS: one tensor
// Outputs are touched beforehand; each contender is called twice and the second call is timed. Tensors whose samples make
// ghost batches of 16 have those kernels too. `python -m benchmarks --question kernels` runs this and judges it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "batchnorm.h"
#include "pool.h"

// With one thread: its own processor time, which neighbours on the machine disturb least.
static bool alone = false;
static double now() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec t;
  if (alone && clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0) return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
static char* allocate(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 4096, bytes + 4096)) exit(2);
  memset(p, 0, bytes);
  return (char*)p;
}
static void checked(int code) {
  if (code) fprintf(stderr, "%s\n", bn_error(code)), exit(3);
}

// A copy, or a comparison of two equal tensors: reading alone. Ordinary stores read the line they write first; those that
// go around the caches do not, which is faster for tensors that no cache holds. The C library takes them for pieces above
// a size of its own choice, hence the way "shares": one piece for each thread.
enum Way { kOrdinary, kAround, kShares, kReading };
struct Sweep { char* to; const char* from; size_t bytes, piece; Way way; };
static int differences = 0;
static void sweep_piece(void* context, int64_t i) {
  const Sweep& s = *(Sweep*)context;
  const size_t at = (size_t)i * s.piece, n = std::min(s.piece, s.bytes - at);
  if (s.way == kReading) {
    if (memcmp(s.to + at, s.from + at, n)) differences = 1;
    return;
  }
#if defined(__SSE2__)
  if (s.way == kAround) {
    const size_t whole = n / 16 * 16;
    for (size_t b = 0; b < whole; b += 16)
      _mm_stream_si128((__m128i*)(s.to + at + b), _mm_load_si128((const __m128i*)(s.from + at + b)));
    _mm_sfence();
    memcpy(s.to + at + whole, s.from + at + whole, n - whole);
    return;
  }
#endif
  memcpy(s.to + at, s.from + at, n);
}
static void sweep(char* to, const char* from, size_t bytes, Way way) {
  const size_t threads = (size_t)bn_get_threads(), share = ((bytes + threads - 1) / threads + 63) / 64 * 64;
  Sweep s = {to, from, bytes, way == kShares ? share : 256 << 10, way};
  pool_run((int64_t)((bytes + s.piece - 1) / s.piece), sweep_piece, &s, (int64_t)bytes * 2);
}

// A tensor with everything that the kernels take and give.
struct Tensor {
  int dtype;
  bool last;
  int64_t n, c, plane;
  size_t bytes;
  char *x, *dy, *y, *twin;
  int64_t dims[5], ghost[5], wdims[4];
  std::vector<float> w, mean, rest, variance, count, scale, offset, sum_dy, sum_dy_xh;

  Tensor(int dtype, bool last, int64_t n, int64_t c, int64_t plane) : dtype(dtype), last(last), n(n), c(c), plane(plane) {
    const int64_t elements = n * c * plane, rows = n * plane, groups = n % 16 ? 1 : n / 16;
    bytes = (size_t)elements * (dtype == BN_FLOAT32 ? 4 : 2);
    for (char** p : {&x, &dy, &y, &twin}) *p = allocate(bytes);
    for (int64_t i = 0; i < elements; i++) {
      put(x, i, 0.5f + (float)((i * 2654435761u >> 7) % 1000) / 500);
      put(dy, i, (float)((i * 40503u >> 3) % 997) / 500 - 1);
    }
    memcpy(twin, x, bytes);
    const int64_t first_dims[5] = {n, 1, 1, c, plane}, last_dims[5] = {1, 1, rows, c, 1};
    const int64_t first_ghost[5] = {16, groups, 1, c, plane}, last_ghost[5] = {16, groups, plane, c, 1};
    const int64_t first_w[4] = {n, 1, 1, plane}, last_w[4] = {1, 1, rows, 1};
    memcpy(dims, last ? last_dims : first_dims, sizeof dims);
    memcpy(ghost, last ? last_ghost : first_ghost, sizeof ghost);
    memcpy(wdims, last ? last_w : first_w, sizeof wdims);
    for (int64_t i = 0; i < rows; i++) w.push_back(i % 7 ? 1.f : 0.f);
    for (std::vector<float>* v : {&mean, &rest, &variance, &sum_dy, &sum_dy_xh}) v->resize((size_t)(c * groups));
    scale.assign(mean.size(), 1.5f), offset.assign(mean.size(), 0.1f), count.resize((size_t)groups);
  }
  ~Tensor() { free(x), free(dy), free(y), free(twin); }
  void put(char* to, int64_t i, float value) const {
    if (dtype == BN_FLOAT32) { ((float*)to)[i] = value; return; }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t*)to)[i] = (uint16_t)(bits >> 16);
  }
  void forward(const int64_t* d, bool weighted) {
    checked(bn_forward(dtype, d, x, weighted ? w.data() : nullptr, weighted ? wdims : nullptr, 1e-3, scale.data(), offset.data(),
                       0, mean.data(), rest.data(), variance.data(), count.data(), y));
  }
  void backward(const int64_t* d, bool weighted) {
    checked(bn_backward(dtype, d, x, dy, weighted ? w.data() : nullptr, weighted ? wdims : nullptr, count.data(), mean.data(),
                        rest.data(), variance.data(), 1e-3, scale.data(), offset.data(), 0, nullptr, 0, sum_dy.data(),
                        sum_dy_xh.data(), y));
  }
  void standardize() {
    checked(bn_standardize(dtype, dims, x, nullptr, nullptr, mean.data(), rest.data(), variance.data(), 1e-3, scale.data(),
                           offset.data(), 0, y));
  }
  void moments() {
    checked(bn_moments(dtype, dims, x, nullptr, nullptr, mean.data(), rest.data(), variance.data(), count.data()));
  }
};

struct Contender { const char* name; std::function<void()> call; std::vector<double> taken; };

static std::vector<Contender> contenders(Tensor& t) {
  std::vector<Contender> all = {{"copy, ordinary", [&] { sweep(t.y, t.x, t.bytes, kOrdinary); }, {}},
                                {"copy, shares", [&] { sweep(t.y, t.x, t.bytes, kShares); }, {}},
                                {"reading two tensors", [&] { sweep(t.twin, t.x, t.bytes, kReading); }, {}},
                                {"forward", [&] { t.forward(t.dims, false); }, {}},
                                {"backward", [&] { t.backward(t.dims, false); }, {}},
                                {"inference", [&] { t.standardize(); }, {}},
                                {"moments", [&] { t.moments(); }, {}},
                                {"forward, weights", [&] { t.forward(t.dims, true); }, {}},
                                {"backward, weights", [&] { t.backward(t.dims, true); }, {}}};
#if defined(__SSE2__)
  all.push_back({"copy, non-temporal", [&] { sweep(t.y, t.x, t.bytes, kAround); }, {}});
#endif
  if (t.n % 16 == 0) {
    all.push_back({"forward, ghost", [&] { t.forward(t.ghost, false); }, {}});
    all.push_back({"backward, ghost", [&] { t.backward(t.ghost, false); }, {}});
  }
  return all;
}

static void measure(Tensor& t, int rounds, double seconds) {
  std::vector<Contender> all = contenders(t);
  const double begin = now();
  for (int round = 0; round < rounds && (round < 5 || now() - begin < seconds); round++) {
    for (size_t k = 0; k < all.size(); k++) {  // forward and backward through them
      Contender& one = all[round % 2 ? all.size() - 1 - k : k];
      one.call();  // wakes the threads, and throws the others' data out of the caches
      double start = now();
      one.call();
      const int times = std::max(1, std::min(200, (int)(200e-6 / std::max(now() - start, 1e-7))));
      start = times > 1 ? now() : start;
      for (int i = 0; i < times && times > 1; i++) one.call();
      one.taken.push_back((now() - start) / times);
    }
  }
  for (Contender& one : all) {
    std::sort(one.taken.begin(), one.taken.end());
    const size_t half = one.taken.size() / 2;
    const double median = one.taken.size() % 2 ? one.taken[half] : (one.taken[half - 1] + one.taken[half]) / 2;
    printf("%lldx%lldx%lld,%s,%s,\"%s\",%.6g,%.6g\n", (long long)t.n, (long long)t.c, (long long)t.plane,
           t.dtype == BN_FLOAT32 ? "float32" : "bfloat16", t.last ? "last" : "first", one.name, 1e3 * one.taken[0], 1e3 * median);
  }
  fflush(stdout);
}

int main(int argc, char** argv) {
  auto text = [&](int i, const char* otherwise) { return argc > i ? argv[i] : otherwise; };
  const int rounds = atoi(text(1, "15"));
  const double seconds = atof(text(2, "10"));
  bn_set_threads(atoi(text(3, "0")));
  alone = bn_get_threads() == 1;
  const char *type = text(4, "all"), *layout = text(5, "all");
  std::vector<std::vector<int64_t>> shapes = {{5, 64, 784}, {32, 256, 196}, {32, 2048, 49}, {32, 64, 3136}, {64, 64, 3136}, {256, 64, 3136}};
  if (argc > 8) shapes = {{atoll(argv[6]), atoll(argv[7]), atoll(argv[8])}};
  printf("shape,dtype,layout,contender,minimum_ms,median_ms\n");
  for (int dtype : {BN_FLOAT32, BN_BFLOAT16})
    for (const std::vector<int64_t>& s : shapes)
      for (bool last : {false, true}) {
        if (strcmp(type, "all") && strcmp(type, dtype == BN_FLOAT32 ? "float32" : "bfloat16")) continue;
        if (strcmp(layout, "all") && strcmp(layout, last ? "last" : "first")) continue;
        Tensor tensor(dtype, last, s[0], s[1], s[2]);
        measure(tensor, rounds, seconds);
      }
  if (differences) return fprintf(stderr, "a copy differs from its tensor\n"), 4;
  return 0;
}
