// Prints times as ratios to the better of an ordinary and a non-temporal copy of the same tensor, in the same run.
//   bench [repeats [threads]]     outputs are touched beforehand; each contender is called twice and the second is timed
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

struct Copy { char* to; const char* from; size_t bytes; bool around; };
static const size_t kChunk = 256 << 10;
static void copy_chunk(void* context, int64_t i) {
  const Copy& c = *(Copy*)context;
  const size_t from = (size_t)i * kChunk, n = c.bytes - from < kChunk ? c.bytes - from : kChunk;
#if defined(__SSE2__)
  if (c.around) {
    for (size_t b = 0; b < n; b += 16)
      _mm_stream_si128((__m128i*)(c.to + from + b), _mm_load_si128((const __m128i*)(c.from + from + b)));
    _mm_sfence();
    return;
  }
#endif
  memcpy(c.to + from, c.from + from, n);
}
static void copy(Copy c) { pool_run((int64_t)((c.bytes + kChunk - 1) / kChunk), copy_chunk, &c, (int64_t)c.bytes * 2); }

struct Shape { int64_t n, c, h; };

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? atoi(argv[1]) : 15;
  bn_set_threads(argc > 2 ? atoi(argv[2]) : 2);
  alone = bn_get_threads() == 1;
  const Shape shapes[] = {{5, 64, 28}, {32, 256, 14}, {32, 2048, 7}, {32, 64, 56}, {64, 64, 56}, {256, 64, 56}};
  printf("isa %s, threads %d; ratios to the better copy\n", bn_isa(), bn_get_threads());
  printf("%-22s %-5s %-5s %8s | %8s %8s %8s %8s | %8s %8s %8s %8s\n", "shape", "type", "order", "copy ms", "forward", "backward",
         "infer", "moments", "weighted", "w back", "ghost", "g back");
  for (int dtype : {BN_FLOAT32, BN_BFLOAT16})
    for (const Shape& s : shapes)
      for (bool last : {false, true}) {
        const int64_t plane = s.h * s.h, elements = s.n * s.c * plane;
        const size_t bytes = (size_t)elements * (dtype == BN_FLOAT32 ? 4 : 2);
        char *x = allocate(bytes), *dy = allocate(bytes), *y = allocate(bytes);
        for (int64_t i = 0; i < elements; i++) {
          const float a = 0.5f + (float)((i * 2654435761u >> 7) % 1000) / 500, b = (float)((i * 40503u >> 3) % 997) / 500 - 1;
          if (dtype == BN_FLOAT32) ((float*)x)[i] = a, ((float*)dy)[i] = b;
          else { uint32_t u; memcpy(&u, &a, 4); ((uint16_t*)x)[i] = (uint16_t)(u >> 16); memcpy(&u, &b, 4); ((uint16_t*)dy)[i] = (uint16_t)(u >> 16); }
        }
        const int64_t first[5] = {s.n, 1, 1, s.c, plane}, channels_last[5] = {1, 1, s.n * plane, s.c, 1};
        const int64_t ghost_first[5] = {16, s.n / 16, 1, s.c, plane}, ghost_last[5] = {16, s.n / 16, plane, s.c, 1};
        const int64_t* dims = last ? channels_last : first;
        const int64_t* ghost = last ? ghost_last : ghost_first;
        const int64_t rows = s.n * plane, w_first[4] = {s.n, 1, 1, plane}, w_last[4] = {1, 1, rows, 1};
        std::vector<float> w(rows);
        for (int64_t i = 0; i < rows; i++) w[i] = i % 7 ? 1.f : 0.f;
        const size_t vectors = (size_t)(s.c * s.n);
        std::vector<float> mean(vectors), rest(vectors), variance(vectors), count(s.n), scale(vectors, 1.5f), offset(vectors, 0.1f), a(vectors), b(vectors);
        auto forward = [&](const int64_t* d, const float* weights, const int64_t* wd) {
          if (bn_forward(dtype, d, x, weights, wd, 1e-3, scale.data(), offset.data(), 0, mean.data(), rest.data(), variance.data(), count.data(), y)) exit(3);
        };
        auto backward = [&](const int64_t* d, const float* weights, const int64_t* wd) {
          if (bn_backward(dtype, d, x, dy, weights, wd, count.data(), mean.data(), rest.data(), variance.data(), 1e-3, scale.data(), offset.data(), 0, nullptr, 0, a.data(), b.data(), y)) exit(3);
        };
        const int64_t* wd = last ? w_last : w_first;
        std::vector<std::function<void()>> contenders = {
            [&] { copy({y, x, bytes, false}); },
            [&] { copy({y, x, bytes, true}); },
            [&] { forward(dims, nullptr, nullptr); },
            [&] { backward(dims, nullptr, nullptr); },
            [&] { bn_standardize(dtype, dims, x, nullptr, nullptr, mean.data(), rest.data(), variance.data(), 1e-3, scale.data(), offset.data(), 0, y); },
            [&] { bn_moments(dtype, dims, x, nullptr, nullptr, mean.data(), rest.data(), variance.data(), count.data()); },
            [&] { forward(dims, w.data(), wd); },
            [&] { backward(dims, w.data(), wd); },
            [&] { if (s.n % 16 == 0) forward(ghost, nullptr, nullptr); },
            [&] { if (s.n % 16 == 0) backward(ghost, nullptr, nullptr); }};
        std::vector<double> best(contenders.size(), 1e9);
        for (int r = 0; r < repeats; r++)
          for (size_t k = 0; k < contenders.size(); k++) {
            contenders[k]();
            const double begin = now();
            contenders[k]();
            const double time = now() - begin;
            if (time < best[k]) best[k] = time;
          }
        const double unit = best[0] < best[1] ? best[0] : best[1];
        char name[64];
        snprintf(name, sizeof name, "%lldx%lldx%lldx%lld %.0fMB", (long long)s.n, (long long)s.c, (long long)s.h, (long long)s.h, (double)bytes / 1e6);
        printf("%-22s %-5s %-5s %8.3f |", name, dtype == BN_FLOAT32 ? "f32" : "bf16", last ? "last" : "first", unit * 1e3);
        for (size_t k = 2; k < best.size(); k++) printf(" %8.2f%s", best[k] / unit, k == 5 ? " |" : "");
        printf("\n");
        fflush(stdout);
        free(x), free(dy), free(y);
      }
  return 0;
}
