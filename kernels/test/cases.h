// The cases of the self-check: random views, types, weights and hostile data, in buffers that notice a stray write.
#pragma once
#include <math.h>

#include <memory>
#include <random>
#include <vector>

#include "batchnorm.h"
#include "memory.h"
#include "plan.h"
#include "reference.h"
#include "types.h"

typedef std::unique_ptr<Buffer> Memory;
static std::mt19937_64 generator;
static int64_t pick(int64_t n) { return (int64_t)(generator() % (uint64_t)n); }
static double normal() { static std::normal_distribution<double> d; return d(generator); }

struct Case {
  int dtype, activation, frozen, data;
  int64_t dims[5], wdims[4];
  bool weighted, misaligned, at_end, added;  // added: with a residual
  double epsilon;
  uint64_t seed;
  int64_t elements, statistics;
  Memory x, dy, w, mean, remainder, variance, count, scale, offset, live, sum_dy, sum_dy_xh, y, dx, residual, d_residual;
  const void* weights() const { return weighted ? w->data() : nullptr; }
  size_t item() const { return dtype == BN_FLOAT64 ? 8 : dtype == BN_FLOAT32 ? 4 : 2; }
  size_t statistic() const { return dtype == BN_FLOAT64 ? 8 : 4; }
  Memory elements_buffer() const { return make(elements, item()); }
  Memory statistics_buffer() const { return make(statistics, statistic()); }
  Memory make(int64_t n, size_t each) const {
    return Memory(new Buffer((size_t)n * each, at_end, misaligned ? each * (1 + seed % 15) : 0));
  }
};
static const char* const kTypes[] = {"float32", "float64", "float16", "bfloat16"};
static const char* const kData[] = {"normal", "far mean", "outlier", "drift", "not finite", "huge", "constant", "masked NaN"};

[[noreturn]] static void fail(const Case& c, const char* what, int64_t i, double got, double expected, double tolerance) {
  printf("FAILED %s [%lld]: got %.17g, expected %.17g, tolerance %.3g\n", what, (long long)i, got, expected, tolerance);
  printf("  isa %s, %s, dims [%lld, %lld, %lld, %lld, %lld], data: %s, activation %d, frozen %d, misaligned %d, at_end %d, residual %d\n",
         bn_isa(), kTypes[c.dtype], (long long)c.dims[0], (long long)c.dims[1], (long long)c.dims[2],
         (long long)c.dims[3], (long long)c.dims[4], kData[c.data], c.activation, c.frozen, c.misaligned, c.at_end, c.added);
  if (c.weighted)
    printf("  weights [%lld, %lld, %lld, %lld]\n", (long long)c.wdims[0], (long long)c.wdims[1], (long long)c.wdims[2],
           (long long)c.wdims[3]);
  exit(1);
}
static void ok(const Case& c, const char* what, int code) {
  if (code) { printf("%s: %s\n", what, bn_error(code)); fail(c, what, 0, code, 0, 0); }
}

static void put(int dtype, void* p, int64_t i, double v) {
  if (dtype == BN_FLOAT64) ((double*)p)[i] = v;
  else if (dtype == BN_FLOAT32) ((float*)p)[i] = (float)v;
  else if (dtype == BN_FLOAT16) narrow((float)v, (half*)p + i);
  else narrow((float)v, (bfloat*)p + i);
}

// ---- cases
static int64_t small_size() {
  static const int64_t sizes[] = {0, 1, 1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33};
  return sizes[pick(13)];
}
static void choose_dims(Case& c) {
  int64_t* d = c.dims;
  const int64_t n = 1 + pick(40), s = 1 + pick(300), ch = 1 + pick(150);
  switch (pick(11)) {
    case 0: d[0] = 1, d[1] = 1, d[2] = n * s, d[3] = ch, d[4] = 1; break;            // channels-last
    case 1: d[0] = n, d[1] = 1, d[2] = 1, d[3] = 1 + ch / 4, d[4] = s; break;         // channels-first
    case 2: d[0] = 1 + pick(6), d[1] = 1 + pick(5), d[2] = s, d[3] = ch, d[4] = 1; break;  // ghost, last
    case 3: d[0] = 1 + pick(6), d[1] = 1 + pick(5), d[2] = 1, d[3] = ch / 8 + 1, d[4] = s; break;  // ghost, first
    case 4: d[0] = n, d[1] = 1 + pick(9), d[2] = 1 + pick(9), d[3] = ch, d[4] = 1; break;  // two axes
    case 5: for (int i = 0; i < 5; i++) d[i] = small_size(); break;
    case 6: d[0] = 1, d[1] = 1, d[2] = n, d[3] = 900 + pick(3000), d[4] = 1; break;   // wide
    case 7: d[0] = n, d[1] = 1, d[2] = 1, d[3] = 20 + ch, d[4] = 2 + pick(60); break;  // small images
    case 8: d[0] = 1 + pick(3), d[1] = 1, d[2] = 1, d[3] = 1 + pick(3), d[4] = 1 + pick(60000); break;  // few channels, long
    case 9: d[0] = 1, d[1] = 1, d[2] = 1 + pick(60000), d[3] = 1 + pick(5), d[4] = 1; break;
    default: d[0] = 1 + pick(4), d[1] = 1 + pick(4), d[2] = 1 + pick(4), d[3] = 1 + pick(4), d[4] = 1 + pick(300);
  }
  if (pick(40) == 0) { d[0] = 1 + pick(30), d[1] = 1, d[2] = 1, d[3] = 3, d[4] = 50000 + pick(20000); }  // several segments
  if (pick(40) == 0) { d[0] = 1, d[1] = 1, d[2] = 20000 + pick(20000), d[3] = 33 + pick(40), d[4] = 1; }
  while (element_count(d, 5) > 3000000) d[0] = d[0] > 1 ? d[0] / 2 : 1, d[2] = d[2] > 1 ? d[2] / 2 : 1;
}

static double value_of(const Case& c, int64_t i, int64_t channel) {
  const double far = c.dtype == BN_FLOAT64 ? 1e7 : c.dtype == BN_FLOAT32 ? 1e5 : 100;
  switch (c.data) {
    case 1: return far + normal();
    case 2: return i == 0 ? (c.dtype == BN_FLOAT16 ? 6e4 : 1e6) : 0.5 + normal();
    case 3: return 1e-3 * normal() + 1e3 * (double)i / (double)c.elements;
    case 4: return channel % 3 == 0 && pick(7) == 0 ? (pick(2) ? NAN : INFINITY) : normal();
    case 5: return c.dtype == BN_FLOAT16 ? 3e4 + 1e4 * normal() : 3e19 + 1e19 * normal();
    case 6: return channel % 2 ? 0 : 1.7;
    default: return 0.5 + (1 + (double)(channel % 5)) * normal();
  }
}

static void fill(Case& c) {
  const int64_t* d = c.dims;
  if (c.weighted) {
    const int64_t full[4] = {d[0], d[1], d[2], d[4]};
    for (int i = 0; i < 4; i++) c.wdims[i] = pick(3) ? full[i] : 1;
    const int64_t n = element_count(c.wdims, 4);
    c.w = c.make(n, c.statistic());
    const int64_t kind = pick(8);
    for (int64_t i = 0; i < n; i++) {
      double w = pick(3) ? 1 : 0;
      if (kind == 1) w = pick(4) * 0.375;
      if (kind == 2) w = 0;
      if (kind == 3) w = 1;
      if (kind == 4) w = 1 + (double)pick(3);
      if (kind == 5) w = pick(2) ? 1e-6 : 1;
      put(c.dtype == BN_FLOAT64 ? BN_FLOAT64 : BN_FLOAT32, c.w->data(), i, w);
    }
  }
  int64_t i = 0;
  for (int64_t a = 0; a < d[0]; a++) for (int64_t g = 0; g < d[1]; g++) for (int64_t b = 0; b < d[2]; b++)
    for (int64_t ch = 0; ch < d[3]; ch++) for (int64_t e = 0; e < d[4]; e++, i++) {
      double v = value_of(c, i, g * d[3] + ch);
      if (c.data == 7 && c.weighted) {
        const int64_t* m = c.wdims;
        const int64_t at = (((m[0] == 1 ? 0 : a) * m[1] + (m[1] == 1 ? 0 : g)) * m[2] + (m[2] == 1 ? 0 : b)) * m[3] + (m[3] == 1 ? 0 : e);
        if (statistic(c.dtype, c.w->data(), at) == 0 && pick(2)) v = pick(2) ? NAN : -INFINITY;
      }
      put(c.dtype, c.x->data(), i, v);
      put(c.dtype, c.dy->data(), i, 0.1 + normal());
      put(c.dtype, c.residual->data(), i, normal());
    }
  const int s = c.dtype == BN_FLOAT64 ? BN_FLOAT64 : BN_FLOAT32;
  for (int64_t k = 0; k < c.statistics; k++) {
    put(s, c.scale->data(), k, 1 + 0.3 * normal());
    put(s, c.offset->data(), k, 0.2 * normal());
    put(s, c.live->data(), k, pick(4) ? 1 : 0);
  }
}

static Case make_case() {
  Case c;
  c.seed = generator();
  choose_dims(c);
  c.dtype = (int)pick(4);
  c.activation = (int)pick(2);
  c.frozen = pick(6) == 0;
  c.data = (int)pick(8);
  c.weighted = pick(2) == 0;
  c.misaligned = pick(2) == 0;
  c.at_end = pick(2) == 0;
  c.added = pick(3) == 0;
  c.epsilon = c.data == 6 ? 1e-3 : pick(5) ? 1e-5 : 0;
  for (int i = 0; i < 4; i++) c.wdims[i] = 1;
  c.elements = element_count(c.dims, 5);
  c.statistics = c.dims[1] * c.dims[3];
  for (Memory* m : {&c.x, &c.dy, &c.y, &c.dx, &c.residual, &c.d_residual}) *m = c.elements_buffer();
  for (Memory* m : {&c.mean, &c.remainder, &c.variance, &c.scale, &c.offset, &c.live, &c.sum_dy, &c.sum_dy_xh})
    *m = c.statistics_buffer();
  c.count = c.make(c.dims[1], c.statistic());
  fill(c);
  return c;
}
