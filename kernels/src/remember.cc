// What is remembered after a batch: the moving averages, one step on. Memory-bound and tiny: plain loops.
#include <math.h>

#include <initializer_list>

#include "batchnorm.h"

namespace {

template <class S>
void step(int64_t groups, int64_t columns, const S* mean, const S* remainder, const S* variance, const S* count,
          double momentum, int unbiased, int propagate, const S* old_mean, const S* old_variance, const int32_t* old_skipped,
          S* new_mean, S* new_variance, int32_t* new_skipped) {
  const S kept = (S)momentum, taken = (S)(1 - momentum);
  for (int64_t g = 0; g < groups; g++) {
    const S n = count[g];
    const bool filled = n != 0;  // a NaN is something
    const S factor = unbiased && n > 1 ? n / (n - 1) : 1;
    for (int64_t i = g * columns; i < (g + 1) * columns; i++) {
      const S m = remainder ? mean[i] + remainder[i] : mean[i], v = variance[i] * factor;
      const bool usable = filled && (propagate || (isfinite(m) && isfinite(v) && v >= 0));
      new_mean[i] = usable ? kept * old_mean[i] + taken * m : old_mean[i];
      new_variance[i] = usable ? kept * old_variance[i] + taken * v : old_variance[i];
      if (new_skipped) new_skipped[i] = old_skipped[i] + !usable;
    }
  }
}

}  // namespace

extern "C" int bn_remember(int dtype, int64_t groups, int64_t columns, const void* mean, const void* remainder,
                           const void* variance, const void* count, double momentum, int unbiased, int propagate,
                           const void* old_mean, const void* old_variance, const int32_t* old_skipped,
                           const int32_t* old_updates, void* new_mean, void* new_variance, int32_t* new_skipped,
                           int32_t* new_updates) {
  if (dtype < BN_FLOAT32 || dtype > BN_BFLOAT16) return BN_BAD_DTYPE;
  if (groups < 0 || columns < 0) return BN_BAD_SIZE;
  if (!old_updates != !new_updates) return BN_NULL;
  if (groups == 0 || columns == 0) {
    if (new_updates) *new_updates = *old_updates + 1;
    return BN_OK;
  }
  for (const void* needed : {mean, variance, count, old_mean, old_variance, (const void*)new_mean, (const void*)new_variance})
    if (!needed) return BN_NULL;
  if (!old_skipped != !new_skipped) return BN_NULL;
  auto run = [&](auto s) {
    typedef decltype(s) S;
    step(groups, columns, (const S*)mean, (const S*)remainder, (const S*)variance, (const S*)count, momentum, unbiased,
         propagate, (const S*)old_mean, (const S*)old_variance, old_skipped, (S*)new_mean, (S*)new_variance, new_skipped);
  };
  dtype == BN_FLOAT64 ? run(0.0) : run(0.0f);
  if (new_updates) *new_updates = *old_updates + 1;
  return BN_OK;
}
