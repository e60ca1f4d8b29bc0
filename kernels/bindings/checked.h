// What the bindings share: the kernels on arrays of any framework, every size and type checked first, so that a kernel
// is never given memory that it may not touch.
//
// x is [A, G, B, C, D]; weights are [A', G', B', D'] with each size full or 1, or empty in every dimension for none;
// vectors are [G, C], count is [G, 1]; an absent vector has no elements. Operands and results are in the order of each
// function below; what stands in brackets is there where ADD is, a kernel with a residual. An empty string means success.
#ifndef BATCHNORM_BINDINGS_CHECKED_H
#define BATCHNORM_BINDINGS_CHECKED_H

#include <string>

#include "batchnorm.h"

namespace batchnorm {

struct Array {
  int type = -1;  // of enum bn_dtype; -1 for any other
  int rank = 0;
  const int64_t* dims = nullptr;
  void* data = nullptr;

  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
};

struct Extra {
  double epsilon = 0;
  int64_t activation = BN_NONE;
  bool frozen = false;
  double momentum = 0;
  bool unbiased = false, propagate = false;
};

typedef std::string (*Function)(const Array* in, const Array* out, const Extra& extra);

class Checked {
 public:
  explicit Checked(const Array& x) : x(x), statistics_(x.type == BN_FLOAT64 ? BN_FLOAT64 : BN_FLOAT32) {
    if (x.type < 0) fail("x", "be float16, bfloat16, float32 or float64");
    if (x.rank != 5) fail("x", "have five dimensions");
  }

  void fail(const char* name, const char* rule) {
    if (problem.empty()) problem = "batchnorm kernels: " + std::string(name) + " must " + rule;
  }

  void* like_x(const Array& a, const char* name) {
    bool same = a.type == x.type && a.rank == 5;
    for (int i = 0; same && problem.empty() && i < 5; ++i) same = a.dims[i] == x.dims[i];
    if (!same) fail(name, "be like x");
    return a.data;
  }

  void* weights(const Array& a) {
    if (a.rank != 4) fail("weights", "have four dimensions");
    if (!problem.empty()) return nullptr;
    const int64_t full[4] = {x.dims[0], x.dims[1], x.dims[2], x.dims[4]};
    bool none = true;
    for (int i = 0; i < 4; ++i) {
      wdims[i] = a.dims[i];
      none = none && wdims[i] == 0;
    }
    if (none) return nullptr;
    if (a.type != statistics_) fail("weights", "have the type of the statistics");
    for (int i = 0; i < 4; ++i)
      if (wdims[i] != full[i] && wdims[i] != 1) fail("weights", "broadcast to x");
    return a.data;
  }

  void* vector(const Array& a, const char* name, bool optional = false, bool per_group = false) {
    if (!problem.empty()) return nullptr;
    const int64_t expected = x.dims[1] * (per_group ? 1 : x.dims[3]);
    if (optional && expected != 0 && a.elements() == 0) return nullptr;
    if (a.type != statistics_) fail(name, "have the type of the statistics");
    if (a.elements() != expected) fail(name, "have one element per group and channel");
    return a.data;
  }

  std::string run(int code) const { return code == BN_OK ? "" : bn_error(code); }

  const Array& x;
  int64_t wdims[4] = {0, 0, 0, 0};
  std::string problem;

 private:
  const int statistics_;
};

// x, weights -> mean, remainder, variance, count
inline std::string moments(const Array* in, const Array* out, const Extra&) {
  Checked c(in[0]);
  void* w = c.weights(in[1]);
  void *mean = c.vector(out[0], "mean"), *remainder = c.vector(out[1], "remainder");
  void *variance = c.vector(out[2], "variance"), *count = c.vector(out[3], "count", false, true);
  if (!c.problem.empty()) return c.problem;
  return c.run(bn_moments(c.x.type, c.x.dims, c.x.data, w, c.wdims, mean, remainder, variance, count));
}

// x, [residual,] weights, mean, remainder, variance, count, scale, offset, live -> y; what only the derivative reads is
// not looked at
template <bool ADD> std::string standardize(const Array* in, const Array* out, const Extra& extra) {
  Checked c(in[0]);
  const void* residual = ADD ? c.like_x(*++in, "residual") : nullptr;
  void* w = c.weights(in[1]);
  void *mean = c.vector(in[2], "mean"), *remainder = c.vector(in[3], "remainder", true);
  void* variance = c.vector(in[4], "variance");
  void *scale = c.vector(in[6], "scale", true), *offset = c.vector(in[7], "offset", true), *y = c.like_x(out[0], "y");
  if (!c.problem.empty()) return c.problem;
  return c.run(bn_standardize_add(c.x.type, c.x.dims, c.x.data, residual, w, c.wdims, mean, remainder, variance,
                                  extra.epsilon, scale, offset, (int)extra.activation, y));
}

// x, [residual,] weights, scale, offset -> y, mean, remainder, variance, count
template <bool ADD> std::string forward(const Array* in, const Array* out, const Extra& extra) {
  Checked c(in[0]);
  const void* residual = ADD ? c.like_x(*++in, "residual") : nullptr;
  void* w = c.weights(in[1]);
  void *scale = c.vector(in[2], "scale", true), *offset = c.vector(in[3], "offset", true), *y = c.like_x(out[0], "y");
  void *mean = c.vector(out[1], "mean"), *remainder = c.vector(out[2], "remainder");
  void *variance = c.vector(out[3], "variance"), *count = c.vector(out[4], "count", false, true);
  if (!c.problem.empty()) return c.problem;
  return c.run(bn_forward_add(c.x.type, c.x.dims, c.x.data, residual, w, c.wdims, extra.epsilon, scale, offset,
                              (int)extra.activation, mean, remainder, variance, count, y));
}

// x, dy, [y,] weights, mean, remainder, variance, count, scale, offset, live -> dx, [d_residual,] sum_dy, sum_dy_xh
template <bool ADD> std::string backward(const Array* in, const Array* out, const Extra& extra) {
  Checked c(in[0]);
  void *dy = c.like_x(in[1], "dy"), *dx = c.like_x(out[0], "dx");
  const void* y = ADD ? c.like_x((++in)[1], "y") : nullptr;
  void* d_residual = ADD ? c.like_x(*++out, "d_residual") : nullptr;
  void* w = c.weights(in[2]);
  void *mean = c.vector(in[3], "mean"), *remainder = c.vector(in[4], "remainder", true);
  void *variance = c.vector(in[5], "variance"), *count = c.vector(in[6], "count", extra.frozen, true);
  void *scale = c.vector(in[7], "scale", true), *offset = c.vector(in[8], "offset", true);
  void* live = c.vector(in[9], "live", true);
  void *sum_dy = c.vector(out[1], "sum_dy"), *sum_dy_xh = c.vector(out[2], "sum_dy_xh");
  if (!c.problem.empty()) return c.problem;
  return c.run(bn_backward_add(c.x.type, c.x.dims, c.x.data, dy, y, w, c.wdims, count, mean, remainder, variance,
                               extra.epsilon, scale, offset, (int)extra.activation, live, extra.frozen, sum_dy, sum_dy_xh,
                               dx, d_residual));
}

// x, dy, [y,] weights, mean, remainder, variance, scale, offset -> sum_dy, sum_dy_xh
template <bool ADD> std::string backward_sums(const Array* in, const Array* out, const Extra& extra) {
  Checked c(in[0]);
  void* dy = c.like_x(in[1], "dy");
  const void* y = ADD ? c.like_x((++in)[1], "y") : nullptr;
  void* w = c.weights(in[2]);
  void *mean = c.vector(in[3], "mean"), *remainder = c.vector(in[4], "remainder", true);
  void* variance = c.vector(in[5], "variance");
  void *scale = c.vector(in[6], "scale", true), *offset = c.vector(in[7], "offset", true);
  void *sum_dy = c.vector(out[0], "sum_dy"), *sum_dy_xh = c.vector(out[1], "sum_dy_xh");
  if (!c.problem.empty()) return c.problem;
  return c.run(bn_backward_sums_add(c.x.type, c.x.dims, c.x.data, dy, y, w, c.wdims, mean, remainder, variance,
                                    extra.epsilon, scale, offset, (int)extra.activation, sum_dy, sum_dy_xh));
}

// x, dy, [y,] weights, mean, remainder, variance, count, scale, offset, live, sum_dy, sum_dy_xh -> dx[, d_residual]
template <bool ADD> std::string backward_input(const Array* in, const Array* out, const Extra& extra) {
  Checked c(in[0]);
  void *dy = c.like_x(in[1], "dy"), *dx = c.like_x(out[0], "dx");
  const void* y = ADD ? c.like_x((++in)[1], "y") : nullptr;
  void* d_residual = ADD ? c.like_x(out[1], "d_residual") : nullptr;
  void* w = c.weights(in[2]);
  void *mean = c.vector(in[3], "mean"), *remainder = c.vector(in[4], "remainder", true);
  void *variance = c.vector(in[5], "variance"), *count = c.vector(in[6], "count", extra.frozen, true);
  void *scale = c.vector(in[7], "scale", true), *offset = c.vector(in[8], "offset", true);
  void* live = c.vector(in[9], "live", true);
  void *sum_dy = c.vector(in[10], "sum_dy", extra.frozen), *sum_dy_xh = c.vector(in[11], "sum_dy_xh", extra.frozen);
  if (!c.problem.empty()) return c.problem;
  return c.run(bn_backward_input_add(c.x.type, c.x.dims, c.x.data, dy, y, w, c.wdims, count, mean, remainder, variance,
                                     extra.epsilon, scale, offset, (int)extra.activation, live, extra.frozen, sum_dy,
                                     sum_dy_xh, dx, d_residual));
}

// mean, remainder, variance, count and moving_mean, moving_variance, skipped, updates -> the last four, one step on.
// skipped and updates are int32, or absent; the moments are [G, C], the others hold as many elements, updates one.
inline std::string remember(const Array* in, const Array* out, const Extra& extra) {
  const char* const names[] = {"mean", "remainder", "variance", "count", "moving_mean", "moving_variance",
                               "skipped_updates", "num_updates"};
  const std::string prefix = "batchnorm kernels: ";
  if (in[0].rank != 2) return prefix + "mean must have two dimensions";
  const int64_t groups = in[0].dims[0], columns = in[0].dims[1], n = groups * columns;
  if (in[0].type != BN_FLOAT32 && in[0].type != BN_FLOAT64) return prefix + "mean must be float32 or float64";
  for (int i = 1; i < 6; ++i) {
    if (in[i].type != in[0].type) return prefix + names[i] + " must have the type of the statistics";
    if (in[i].elements() != (i == 3 ? groups : n)) return prefix + names[i] + " must have one element per channel";
  }
  const bool counted = in[6].data && in[6].elements() != 0, numbered = in[7].data && in[7].elements() != 0;
  if (counted && in[6].elements() != n) return prefix + names[6] + " must have one element per channel";
  if (numbered && in[7].elements() != 1) return prefix + names[7] + " must be one number";
  const int code = bn_remember(in[0].type, groups, columns, in[0].data, in[1].data, in[2].data, in[3].data, extra.momentum,
                               extra.unbiased, extra.propagate, in[4].data, in[5].data,
                               counted ? (const int32_t*)in[6].data : nullptr,
                               numbered ? (const int32_t*)in[7].data : nullptr, out[0].data, out[1].data,
                               counted ? (int32_t*)out[2].data : nullptr, numbered ? (int32_t*)out[3].data : nullptr);
  return code == BN_OK ? "" : bn_error(code);
}

}  // namespace batchnorm
#endif
