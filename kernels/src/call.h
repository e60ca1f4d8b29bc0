// One call, as the kernels see it. Included by every instruction-set level and by dispatch.cc; plain data only.
#pragma once
#include <stdint.h>

#include "plan.h"

enum Step { kMoments = 1, kSums = 2, kStandardize = 4, kInput = 8 };

struct Call {
  Plan plan;
  int steps;  // of Step; at most one that reduces and one that applies
  const void *x, *dy;
  const void *residual, *y;  // may be NULL: added before the activation; what the activation let through, else recomputed
  void *out, *d_residual;    // y or dx; dy where the activation let it through, or NULL
  double epsilon;
  bool relu, frozen;
  void *mean, *remainder, *variance;                       // written by kMoments, read otherwise; remainder may be NULL
  const void *scale, *offset, *live;                       // may be NULL
  void *sum_dy, *sum_dy_xh;                                // written by kSums, read by kInput
  const void* count;                                       // read by kInput
  double* partial;  // [3][segments][groups * channels]
  void* coefficient;  // S[kCoefficients][coefficient_stride]
  int64_t coefficient_stride;
};

// The coefficients of one channel. y = (x - M) * A + B; dx = CA * (dy - w * ((x - M) * C1 + C0)).
// OFFSET is for excluded elements that are not finite: y = OFFSET.
enum Coefficient { M, A, B, OFFSET, C1, C0, CA, kCoefficients };

typedef void (*Run)(const Call& call);
struct Level {
  const char* name;
  Run run[4];  // by dtype
};
const Level* baseline_level();
const Level* v3_level();
const Level* v4_level();
const Level* v4_bf16_level();
