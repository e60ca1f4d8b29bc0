#include "reference.h"

#include <math.h>

#include "types.h"

double element(int dtype, const void* x, int64_t i) {
  switch (dtype) {
    case 0: return ((const float*)x)[i];
    case 1: return ((const double*)x)[i];
    case 2: return widen(((const half*)x)[i]);
    default: return widen(((const bfloat*)x)[i]);
  }
}

double statistic(int dtype, const void* vector, int64_t i) { return element(dtype == 1 ? 1 : 0, vector, i); }

// Calls f(element, group, channel, weight) for every element in memory order; channel is g * C + c.
template <class F> static void each_element(const View& v, F f) {
  const int64_t *n = v.dims, *m = v.wdims;
  int64_t i = 0;
  for (int64_t a = 0; a < n[0]; a++)
    for (int64_t g = 0; g < n[1]; g++)
      for (int64_t b = 0; b < n[2]; b++)
        for (int64_t c = 0; c < n[3]; c++)
          for (int64_t d = 0; d < n[4]; d++, i++) {
            double w = 1;
            if (v.weights) {
              const int64_t wa = m[0] == 1 ? 0 : a, wg = m[1] == 1 ? 0 : g, wb = m[2] == 1 ? 0 : b, wd = m[3] == 1 ? 0 : d;
              w = statistic(v.dtype, v.weights, ((wa * m[1] + wg) * m[2] + wb) * m[3] + wd);
            }
            f(i, g, g * n[3] + c, w);
          }
}

void reference_moments(const View& v, const void* x, double* mean, double* variance, double* count) {
  const int64_t groups = v.dims[1], channels = groups * v.dims[3], C = v.dims[3];
  for (int64_t g = 0; g < groups; g++) count[g] = 0;
  for (int64_t k = 0; k < channels; k++) mean[k] = variance[k] = 0;
  // One pass per sum: first the weights, then the mean, then the squares around it.
  const int64_t one_channel[5] = {v.dims[0], groups, v.dims[2], 1, v.dims[4]};
  each_element(View{v.dtype, one_channel, v.weights, v.wdims}, [&](int64_t, int64_t g, int64_t, double w) { count[g] += w; });
  each_element(v, [&](int64_t i, int64_t, int64_t k, double w) { if (w != 0) mean[k] += w * element(v.dtype, x, i); });
  for (int64_t k = 0; k < channels; k++) mean[k] = count[k / C] != 0 ? mean[k] / count[k / C] : 0;
  // Once more around the first mean: a sum of many large numbers loses digits.
  double* rest = variance;
  each_element(v, [&](int64_t i, int64_t, int64_t k, double w) {
    if (w != 0) rest[k] += w * (element(v.dtype, x, i) - mean[k]);
  });
  for (int64_t k = 0; k < channels; k++) {
    if (count[k / C] != 0 && isfinite(mean[k])) mean[k] += rest[k] / count[k / C];
    variance[k] = 0;
  }
  each_element(v, [&](int64_t i, int64_t, int64_t k, double w) {
    const double centred = element(v.dtype, x, i) - mean[k];
    if (w != 0) variance[k] += w * centred * centred;
  });
  for (int64_t k = 0; k < channels; k++) variance[k] = count[k / C] != 0 ? variance[k] / count[k / C] : 0;
}

static double or_else(int dtype, const void* vector, int64_t k, double otherwise) {
  return vector ? statistic(dtype, vector, k) : otherwise;
}
static double inverse_deviation(const View& v, const Statistics& s, int64_t k) {
  const double square = statistic(v.dtype, s.variance, k) + s.epsilon;
  return square == 0 ? 0 : 1 / sqrt(square);
}
static double centred(const View& v, const Statistics& s, int64_t k, double x, double w) {
  if (w == 0 && !isfinite(x)) return 0;
  return x - statistic(v.dtype, s.mean, k) - or_else(v.dtype, s.remainder, k, 0);
}

void reference_standardize(const View& v, const Statistics& s, const void* x, const void* residual, double* y,
                           double* y_before) {
  each_element(v, [&](int64_t i, int64_t, int64_t k, double w) {
    const double scale = inverse_deviation(v, s, k) * or_else(v.dtype, s.scale, k, 1);
    const double from = element(v.dtype, x, i), offset = or_else(v.dtype, s.offset, k, 0);
    double value = w == 0 && !isfinite(from) ? offset : centred(v, s, k, from, w) * scale + offset;
    if (residual) value += element(v.dtype, residual, i);
    y_before[i] = value;
    y[i] = s.relu && value < 0 ? 0 : value;
  });
}

void reference_backward_sums(const View& v, const Statistics& s, const void* x, const void* dy, const unsigned char* counts,
                             double* sum_dy, double* sum_dy_xh) {
  for (int64_t k = 0; k < v.dims[1] * v.dims[3]; k++) sum_dy[k] = sum_dy_xh[k] = 0;
  each_element(v, [&](int64_t i, int64_t, int64_t k, double w) {
    const bool absent = w == 0 && !isfinite(element(v.dtype, x, i));
    const double d = counts[i] && !absent ? element(v.dtype, dy, i) : 0;
    sum_dy[k] += d;
    sum_dy_xh[k] += d * centred(v, s, k, element(v.dtype, x, i), w) * inverse_deviation(v, s, k);
  });
}

void reference_backward_input(const View& v, const Statistics& s, const void* x, const void* dy, const unsigned char* counts,
                              const void* sum_dy, const void* sum_dy_xh, double* dx) {
  each_element(v, [&](int64_t i, int64_t g, int64_t k, double w) {
    const double value = element(v.dtype, x, i), inverse = inverse_deviation(v, s, k);
    const double count = s.frozen ? 0 : statistic(v.dtype, s.count, g), live = s.frozen ? 0 : or_else(v.dtype, s.live, k, 1);
    double path = 0;
    if (live != 0 && count != 0 && w != 0)
      path = live * w / count *
             (statistic(v.dtype, sum_dy, k) + centred(v, s, k, value, w) * inverse * statistic(v.dtype, sum_dy_xh, k));
    const double d = counts[i] ? element(v.dtype, dy, i) : 0;
    dx[i] = w == 0 && !isfinite(value) ? 0 : inverse * or_else(v.dtype, s.scale, k, 1) * (d - path);
  });
}
