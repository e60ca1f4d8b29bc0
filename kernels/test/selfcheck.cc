// Compares the kernels with the plain loops of reference.cc on random views, types, weights and hostile data, for 1, 2
// and 3 threads, in place and not, in one call and in two. Exits 1 at the first mismatch, with the case in words.
//   selfcheck [cases [seed]]       BATCHNORM_ISA=baseline|v3|v4 chooses the instruction set
#include "cases.h"
#include "pool.h"
#include "tune.h"

// ---- comparison
static double ulp(const Case& c) { return c.dtype == BN_FLOAT64 ? 1e-15 : 6e-8; }
static double storage(const Case& c, double v) {  // what rounding the result to the element type may cost
  v = fabs(v);
  return c.dtype == BN_FLOAT16 ? v * 5e-4 + 4e-8 : c.dtype == BN_BFLOAT16 ? v * 4e-3 + 1e-38 : v * ulp(c) + 1e-37;
}
static void compare(const Case& c, const char* what, int64_t i, double got, double expected, double tolerance) {
  const double largest = c.dtype == BN_FLOAT16 ? 65000 : c.dtype == BN_FLOAT64 ? 1e300 : 3.3e38;
  if (isnan(expected) != isnan(got)) fail(c, what, i, got, expected, tolerance);
  if (isnan(expected) || got == expected) return;
  if (fabs(expected) > largest && fabs(got) > largest * 0.99 && (got > 0) == (expected > 0)) return;
  if (!(fabs(got - expected) <= tolerance)) fail(c, what, i, got, expected, tolerance);
}

// ---- the functions, with a residual and without
static int standardize(const Case& c, const Statistics& s, int activation, const void* residual, void* y) {
  if (!c.added)
    return bn_standardize(c.dtype, c.dims, c.x->data(), c.weights(), c.wdims, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, activation, y);
  return bn_standardize_add(c.dtype, c.dims, c.x->data(), residual, c.weights(), c.wdims, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, activation, y);
}
static int forward(const Case& c, const void* x, const void* residual, void* mean, void* rest, void* variance, void* count, void* y) {
  if (!c.added)
    return bn_forward(c.dtype, c.dims, x, c.weights(), c.wdims, c.epsilon, c.scale->data(), c.offset->data(), c.activation, mean, rest, variance, count, y);
  return bn_forward_add(c.dtype, c.dims, x, residual, c.weights(), c.wdims, c.epsilon, c.scale->data(), c.offset->data(), c.activation, mean, rest, variance, count, y);
}
static int backward_sums(const Case& c, const Statistics& s) {
  if (!c.added)
    return bn_backward_sums(c.dtype, c.dims, c.x->data(), c.dy->data(), c.weights(), c.wdims, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, c.activation, c.sum_dy->data(), c.sum_dy_xh->data());
  return bn_backward_sums_add(c.dtype, c.dims, c.x->data(), c.dy->data(), c.y->data(), c.weights(), c.wdims, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, c.activation, c.sum_dy->data(), c.sum_dy_xh->data());
}
static int backward_input(const Case& c, const Statistics& s) {
  if (!c.added)
    return bn_backward_input(c.dtype, c.dims, c.x->data(), c.dy->data(), c.weights(), c.wdims, s.count, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, c.activation, s.live, c.frozen, c.sum_dy->data(), c.sum_dy_xh->data(), c.dx->data());
  return bn_backward_input_add(c.dtype, c.dims, c.x->data(), c.dy->data(), c.y->data(), c.weights(), c.wdims, s.count, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, c.activation, s.live, c.frozen, c.sum_dy->data(), c.sum_dy_xh->data(), c.dx->data(), c.d_residual->data());
}
static int backward(const Case& c, const Statistics& s, const void* dy, void* a, void* b, void* dx, void* d_residual) {
  if (!c.added)
    return bn_backward(c.dtype, c.dims, c.x->data(), dy, c.weights(), c.wdims, s.count, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, c.activation, s.live, c.frozen, a, b, dx);
  return bn_backward_add(c.dtype, c.dims, c.x->data(), dy, c.y->data(), c.weights(), c.wdims, s.count, s.mean, s.remainder, s.variance, c.epsilon, s.scale, s.offset, c.activation, s.live, c.frozen, a, b, dx, d_residual);
}

static int64_t channel_of(const Case& c, int64_t i) {
  const int64_t* d = c.dims;
  return i / (d[4] * d[3] * d[2]) % d[1] * d[3] + i / d[4] % d[3];
}

static void check_moments(const Case& c) {
  const View v = {c.dtype, c.dims, c.weights(), c.wdims};
  std::vector<double> mean(c.statistics), variance(c.statistics), count(c.dims[1]);
  reference_moments(v, c.x->data(), mean.data(), variance.data(), count.data());
  for (int64_t g = 0; g < c.dims[1]; g++)
    compare(c, "count", g, statistic(c.dtype, c.count->data(), g), count[g], fabs(count[g]) * (c.dtype == BN_FLOAT64 ? 1e-12 : ulp(c)) + 1e-9);
  for (int64_t k = 0; k < c.statistics; k++) {
    const double m = statistic(c.dtype, c.mean->data(), k), r = statistic(c.dtype, c.remainder->data(), k);
    const double var = statistic(c.dtype, c.variance->data(), k);
    if (!isfinite(variance[k])) {
      if (isfinite(var)) fail(c, "variance of a channel that is not finite", k, var, variance[k], 0);
      continue;
    }
    const double deviation = sqrt(fabs(variance[k])), grain = fabs(mean[k]) * (c.dtype == BN_FLOAT64 ? 3e-16 : 3e-12);
    compare(c, "mean", k, m + r, mean[k], (c.dtype == BN_FLOAT64 ? 1e-13 : 4e-7) * deviation + 3 * grain + (c.data == 2 ? 1e-9 : 1e-45));
    compare(c, "variance", k, var, variance[k], (c.dtype == BN_FLOAT64 ? 2e-12 : c.dtype == BN_FLOAT32 ? 5e-7 : 1e-6) * fabs(variance[k]) +
            4e-16 * fabs(mean[k]) * deviation + mean[k] * mean[k] * (c.dtype == BN_FLOAT64 ? 1e-30 : 1e-19) + 1e-40);
  }
}

static void check_standardize(const Case& c, const Statistics& s, int activation, std::vector<unsigned char>& counts) {
  const View v = {c.dtype, c.dims, c.weights(), c.wdims};
  std::vector<double> y(c.elements), before(c.elements);
  Statistics with = s;
  with.relu = activation;
  reference_standardize(v, with, c.x->data(), c.added ? c.residual->data() : nullptr, y.data(), before.data());
  for (int64_t i = 0; i < c.elements; i++) {
    const int64_t k = channel_of(c, i);
    const double offset = statistic(c.dtype, c.offset->data(), k), got = element(c.dtype, c.y->data(), i);
    const double added = c.added ? element(c.dtype, c.residual->data(), i) : 0;
    const double tolerance = storage(c, y[i]) + 6 * ulp(c) * (fabs(before[i] - offset - added) + fabs(offset) + fabs(added)) +
                             ulp(c) * fabs(statistic(c.dtype, c.scale->data(), k));
    compare(c, activation ? "y, relu" : "y", i, got, y[i], tolerance);
    if (activation != (c.added ? c.activation : 0)) continue;
    counts[i] = !c.activation || got > 0;
    if (c.added) continue;  // there y itself decides
    // Where rounding decides the sign, in the kernel's arithmetic or in a 16-bit type, dy must not matter.
    if (c.activation && (got == 0 || fabs(before[i]) <= tolerance)) put(c.dtype, c.dy->data(), i, 0);
  }
}

static void check_backward(const Case& c, const Statistics& s, const std::vector<unsigned char>& counts) {
  const View v = {c.dtype, c.dims, c.weights(), c.wdims};
  std::vector<double> a(c.statistics), b(c.statistics), dx(c.elements), size_a(c.statistics), size_b(c.statistics);
  reference_backward_sums(v, s, c.x->data(), c.dy->data(), counts.data(), a.data(), b.data());
  for (int64_t i = 0; i < c.elements; i++) {
    const int64_t k = channel_of(c, i);
    const double d = fabs(element(c.dtype, c.dy->data(), i)), x = element(c.dtype, c.x->data(), i);
    const double square = statistic(c.dtype, c.variance->data(), k) + c.epsilon;
    size_a[k] += d;
    const double xh = (x - statistic(c.dtype, c.mean->data(), k)) / sqrt(square == 0 ? INFINITY : square);
    if (isfinite(xh)) size_b[k] += d * (1 + fabs(xh));
  }
  for (int64_t k = 0; k < c.statistics; k++) {
    compare(c, "sum_dy", k, statistic(c.dtype, c.sum_dy->data(), k), a[k], (c.dtype == BN_FLOAT64 ? 100 : 8) * ulp(c) * size_a[k] + 1e-40);
    compare(c, "sum_dy_xh", k, statistic(c.dtype, c.sum_dy_xh->data(), k), b[k], (c.dtype == BN_FLOAT64 ? 100 : 8) * ulp(c) * size_b[k] + 1e-40);
  }
  reference_backward_input(v, s, c.x->data(), c.dy->data(), counts.data(), c.sum_dy->data(), c.sum_dy_xh->data(), dx.data());
  for (int64_t i = 0; i < c.elements; i++) {
    const int64_t k = channel_of(c, i);
    const double square = statistic(c.dtype, c.variance->data(), k) + c.epsilon, root = square == 0 ? 0 : 1 / sqrt(square);
    const double ca = fabs(root * statistic(c.dtype, c.scale->data(), k));
    const double xh = fabs(root * (element(c.dtype, c.x->data(), i) - statistic(c.dtype, c.mean->data(), k)));
    const double W = fabs(statistic(c.dtype, c.count->data(), k / c.dims[3])), w = 4;
    double terms = fabs(element(c.dtype, c.dy->data(), i));
    if (W > 0 && !c.frozen)
      terms += w / W * (fabs(statistic(c.dtype, c.sum_dy->data(), k)) + (isfinite(xh) ? 1 + xh : 0) * fabs(statistic(c.dtype, c.sum_dy_xh->data(), k)));
    if (c.added) compare(c, "d_residual", i, element(c.dtype, c.d_residual->data(), i), counts[i] ? element(c.dtype, c.dy->data(), i) : 0, 0);
    compare(c, "dx", i, element(c.dtype, c.dx->data(), i), dx[i], storage(c, dx[i]) + 4 * ulp(c) * ca * terms);
  }
}

// The same bits; but any NaN equals any NaN, whose sign and payload depend on the order of operands.
static void same(const Case& c, const char* what, const Memory& a, const Memory& b, bool elements = false) {
  if (memcmp(a->data(), b->data(), a->size()) == 0) return;
  const int dtype = elements || c.dtype == BN_FLOAT64 ? c.dtype : (int)BN_FLOAT32;
  const int64_t n = (int64_t)(a->size() / (elements ? c.item() : c.statistic()));
  for (int64_t i = 0; i < n; i++) {
    const double left = element(dtype, a->data(), i), right = element(dtype, b->data(), i);
    if (left != right && !(isnan(left) && isnan(right))) fail(c, what, i, left, right, 0);
  }
}
static Memory copy(const Case& c, const Memory& from, size_t each) {
  Memory m = c.make((int64_t)(from->size() / each), each);
  memcpy(m->data(), from->data(), from->size());
  return m;
}

// The fused calls, every number of threads, every way, and in place: the same bits.
static void check_same_bits(const Case& c, const Statistics& s) {
  Memory mean = c.statistics_buffer(), rest = c.statistics_buffer(), variance = c.statistics_buffer(), count = c.make(c.dims[1], c.statistic());
  Memory a = c.statistics_buffer(), b = c.statistics_buffer(), d_residual = c.elements_buffer();
  for (int round = 0; round < 5; round++) {
    const bool in_place = round >= 3, last = round == 4;  // in the last, over the other operand
    bn_set_threads(round == 0 ? 1 : in_place ? 1 + (int)pick(3) : round + 1);
    pretend_way((int)pick(kWays + 1) - 1);
    const Memory& read = last ? c.residual : c.x;
    Memory y = in_place ? copy(c, read, c.item()) : c.elements_buffer();
    ok(c, "bn_forward", forward(c, in_place && !last ? y->data() : c.x->data(), last ? y->data() : c.residual->data(), mean->data(), rest->data(), variance->data(), count->data(), y->data()));
    same(c, "mean of bn_forward", mean, c.mean);
    same(c, "remainder of bn_forward", rest, c.remainder);
    same(c, "variance of bn_forward", variance, c.variance);
    same(c, "count of bn_forward", count, c.count);
    same(c, "y of bn_forward", y, c.y, true);
    Memory dx = in_place && !last ? copy(c, c.dy, c.item()) : c.elements_buffer();
    if (last) d_residual = copy(c, c.dy, c.item());
    const Memory& dy = last ? d_residual : in_place ? dx : c.dy;
    ok(c, "bn_backward", backward(c, s, dy->data(), a->data(), b->data(), dx->data(), d_residual->data()));
    same(c, "sum_dy of bn_backward", a, c.sum_dy);
    same(c, "sum_dy_xh of bn_backward", b, c.sum_dy_xh);
    same(c, "dx of bn_backward", dx, c.dx, true);
    if (c.added) same(c, "d_residual of bn_backward", d_residual, c.d_residual, true);
    for (const Memory* m : {&y, &dx, &d_residual, &mean, &rest, &variance, &count, &a, &b})
      if (!(*m)->intact()) fail(c, "canary of a fused call", round, 0, 0, 0);
  }
}

// The moving averages after these moments, which hold NaN, infinities and empty groups.
static void check_remember(Case& c) {
  const int64_t n = c.statistics, columns = c.dims[3];
  const int unbiased = (int)pick(2), propagate = (int)pick(2), type = c.dtype == BN_FLOAT64 ? BN_FLOAT64 : BN_FLOAT32;
  const double momentum = (double)pick(5) / 4;
  Memory old_mean = c.statistics_buffer(), old_variance = c.statistics_buffer(), old_skipped = c.make(n, 4);
  Memory mean = c.statistics_buffer(), variance = c.statistics_buffer(), skipped = c.make(n, 4);
  for (int64_t k = 0; k < n; k++) {
    put(type, old_mean->data(), k, normal()), put(type, old_variance->data(), k, fabs(normal()));
    ((int32_t*)old_skipped->data())[k] = (int32_t)pick(100);
  }
  const int32_t old_updates = (int32_t)pick(100);
  int32_t updates = -1;
  ok(c, "bn_remember", bn_remember(c.dtype, c.dims[1], columns, c.mean->data(), c.remainder->data(), c.variance->data(), c.count->data(), momentum, unbiased, propagate, old_mean->data(), old_variance->data(), (const int32_t*)old_skipped->data(), &old_updates, mean->data(), variance->data(), (int32_t*)skipped->data(), &updates));
  compare(c, "updates", 0, updates, old_updates + 1, 0);
  for (int64_t k = 0; k < n; k++) {
    const double count = statistic(type, c.count->data(), k / columns), m = statistic(type, c.mean->data(), k) + statistic(type, c.remainder->data(), k);
    double v = statistic(type, c.variance->data(), k) * (unbiased && count > 1 ? count / (count - 1) : 1);
    if (type == BN_FLOAT32) v = (float)v;  // where it may overflow
    const double before[2] = {statistic(type, old_mean->data(), k), statistic(type, old_variance->data(), k)}, measured[2] = {m, v};
    const double after[2] = {statistic(type, mean->data(), k), statistic(type, variance->data(), k)};
    const bool usable = count != 0 && (propagate || (isfinite(m) && isfinite(v) && v >= 0));
    for (int i = 0; i < 2; i++) {
      const double expected = usable ? momentum * before[i] + (1 - momentum) * measured[i] : before[i];
      compare(c, i ? "moving_variance" : "moving_mean", k, after[i], expected, usable ? 8 * ulp(c) * (fabs(before[i]) + fabs(measured[i])) : 0);
    }
    compare(c, "skipped", k, ((int32_t*)skipped->data())[k], ((int32_t*)old_skipped->data())[k] + !usable, 0);
  }
  for (const Memory* m : {&old_mean, &old_variance, &old_skipped, &mean, &variance, &skipped})
    if (!(*m)->intact()) fail(c, "canary of bn_remember", 0, 0, 0, 0);
}

// A weight below 0 is refused, and nothing is written.
static void check_negative_weight(Case& c) {
  if (!c.weighted || c.w->size() == 0 || c.dims[1] == 0) return;
  const int type = c.dtype == BN_FLOAT64 ? BN_FLOAT64 : BN_FLOAT32;
  const int64_t at = pick((int64_t)(c.w->size() / c.statistic()));
  const double w = statistic(c.dtype, c.w->data(), at);
  put(type, c.w->data(), at, -0.25);
  Memory mean = c.statistics_buffer(), rest = c.statistics_buffer(), variance = c.statistics_buffer(), count = c.make(c.dims[1], c.statistic());
  const int code = bn_moments(c.dtype, c.dims, c.x->data(), c.weights(), c.wdims, mean->data(), rest->data(), variance->data(), count->data());
  if (code != BN_NEGATIVE_WEIGHT) fail(c, "bn_moments with a negative weight", at, code, BN_NEGATIVE_WEIGHT, 0);
  for (const Memory* m : {&mean, &rest, &variance, &count})
    if (!(*m)->untouched()) fail(c, "written in spite of a negative weight", at, 0, 0, 0);
  put(type, c.w->data(), at, w);
}

static void check_case(Case& c) {
  const void* w = c.weights();
  bn_set_threads(1 + (int)pick(3));
  pretend_way((int)pick(kWays + 1) - 1);
  ok(c, "bn_moments", bn_moments(c.dtype, c.dims, c.x->data(), w, c.wdims, c.mean->data(), c.remainder->data(), c.variance->data(), c.count->data()));
  check_moments(c);
  const Statistics s = {c.mean->data(), c.remainder->data(), c.variance->data(), c.scale->data(), c.offset->data(), c.live->data(), c.count->data(), c.epsilon, c.activation, c.frozen};
  std::vector<unsigned char> counts(c.elements);
  for (int activation : {0, c.activation}) {
    ok(c, "bn_standardize", standardize(c, s, activation, c.residual->data(), c.y->data()));
    check_standardize(c, s, activation, counts);
  }
  ok(c, "bn_backward_sums", backward_sums(c, s));
  ok(c, "bn_backward_input", backward_input(c, s));
  check_backward(c, s, counts);
  check_same_bits(c, s);
  check_negative_weight(c);
  check_remember(c);
  for (Memory* m : {&c.x, &c.dy, &c.mean, &c.remainder, &c.variance, &c.count, &c.scale, &c.offset, &c.live, &c.sum_dy, &c.sum_dy_xh, &c.y, &c.dx, &c.residual, &c.d_residual})
    if (!(*m)->intact()) fail(c, "canary", 0, 0, 0, 0);
}

int main(int argc, char** argv) {
  const int cases = argc > 1 ? atoi(argv[1]) : 400;
  const uint64_t seed = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
  pool_pretend_large(true);
  setenv("BATCHNORM_TUNE", "off", 0);  // every way is taken here, and the same ones each time
  for (int i = 0; i < cases; i++) {
    generator.seed(seed * 1000003 + (uint64_t)i);
    Case c = make_case();
    if (getenv("VERBOSE"))
      printf("%d: %s [%lld %lld %lld %lld %lld] %s%s\n", i, kTypes[c.dtype], (long long)c.dims[0], (long long)c.dims[1],
             (long long)c.dims[2], (long long)c.dims[3], (long long)c.dims[4], kData[c.data], c.weighted ? ", weights" : "");
    fflush(stdout);
    check_case(c);
  }
  printf("selfcheck: %d cases agree, isa %s\n", cases, bn_isa());
  return 0;
}
