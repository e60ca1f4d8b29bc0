// The kernels as plain loops in double: what they mean, not how they are fast. The self-check compares against
// these; the library does without them.
#pragma once
#include <stdint.h>

struct View {
  int dtype;
  const int64_t* dims;  // A, G, B, C, D
  const void* weights;  // S, or NULL
  const int64_t* wdims;
};

double element(int dtype, const void* x, int64_t i);
double statistic(int dtype, const void* vector, int64_t i);

// All outputs are double. mean and variance [G*C], count [G].
void reference_moments(const View& v, const void* x, double* mean, double* variance, double* count);

// From the statistics as S vectors, as the kernels are given them. NULL: remainder 0, scale 1, offset 0, live 1.
struct Statistics {
  const void *mean, *remainder, *variance, *scale, *offset, *live, *count;
  double epsilon;
  int relu, frozen;
};
// residual may be NULL. y_before: before the activation, so that a test can tell where rounding decides the sign.
void reference_standardize(const View& v, const Statistics& s, const void* x, const void* residual, double* y,
                           double* y_before);
// counts[i]: whether dy of element i counts; what the activation let through. d residual is dy there, and 0 elsewhere.
void reference_backward_sums(const View& v, const Statistics& s, const void* x, const void* dy, const unsigned char* counts,
                             double* sum_dy, double* sum_dy_xh);
void reference_backward_input(const View& v, const Statistics& s, const void* x, const void* dy, const unsigned char* counts,
                              const void* sum_dy, const void* sum_dy_xh, double* dx);
