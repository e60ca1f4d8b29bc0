/* Batch normalization kernels: plain functions on pointers and sizes, no framework in them.
 *
 * View.     x is contiguous [A, G, B, C, D] (dims[0..4], any may be 0 or 1). Statistics are per (g, c), reduced over
 *           A, B and D. Channels-last is [1, 1, N*H*W, C, 1], channels-first is [N, 1, 1, C, H*W].
 * Types.    dtype is one of BN_FLOAT32.. below. S, the type of statistics and parameters, is double for BN_FLOAT64 and
 *           float for the others. Every per-channel vector is S[G*C]; count is S[G].
 * Weights.  w is NULL, or S[A', G', B', D'] (wdims[0..3]) where each size is the full one or 1. An element whose weight
 *           is exactly 0 is excluded: it does not touch the moments, whatever x holds there. It is still normalized;
 *           where its x is not finite, y = offset and dx = 0, and its dy counts nowhere. Weights below 0 have no
 *           moments: bn_moments and bn_forward refuse them.
 * Threads.  Every function may be called from several threads at once and after fork(). Results are bit for bit the
 *           same for any number of threads.
 * In place. An output may be the same pointer as an input of equal type (y = x, dx = dy, dx = x); else no overlap.
 * Returns   0, or an error code that bn_error() puts in words. Nothing is written when the code is not 0.
 */
#ifndef BATCHNORM_H
#define BATCHNORM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BN_API __declspec(dllexport)
#else
#define BN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum bn_dtype { BN_FLOAT32 = 0, BN_FLOAT64 = 1, BN_FLOAT16 = 2, BN_BFLOAT16 = 3 };
enum bn_activation { BN_NONE = 0, BN_RELU = 1 };
enum bn_code { BN_OK = 0, BN_BAD_DTYPE = 1, BN_BAD_SIZE = 2, BN_NULL = 3, BN_BAD_WEIGHTS = 4, BN_NO_MEMORY = 5, BN_BAD_ACTIVATION = 6,
               BN_NEGATIVE_WEIGHT = 7 };

/* mean + remainder (an unevaluated sum, so that float32 holds a mean far from 0), variance = sum(w (x - mean)^2) / count,
 * count = sum(w), or A*B*D without weights. A group whose count is 0 has mean = remainder = variance = 0.
 * A NaN or an infinity makes only its own channel not finite. remainder and count may be NULL. */
BN_API int bn_moments(int dtype, const int64_t dims[5], const void* x, const void* w, const int64_t wdims[4],
                      void* mean, void* remainder, void* variance, void* count);

/* k = 1 / sqrt(variance + epsilon), 0 where variance + epsilon is 0;
 * y = (x - mean - remainder) * k * scale + offset, then max(y, 0) for BN_RELU (NaN stays NaN).
 * remainder, scale and offset may be NULL: 0, 1 and 0. */
BN_API int bn_standardize(int dtype, const int64_t dims[5], const void* x, const void* w, const int64_t wdims[4],
                          const void* mean, const void* remainder, const void* variance, double epsilon,
                          const void* scale, const void* offset, int activation, void* y);

/* bn_moments followed by bn_standardize with those moments, in fewer passes over memory; the same bits as the two calls. */
BN_API int bn_forward(int dtype, const int64_t dims[5], const void* x, const void* w, const int64_t wdims[4],
                      double epsilon, const void* scale, const void* offset, int activation,
                      void* mean, void* remainder, void* variance, void* count, void* y);

/* sum_dy = sum(dy), sum_dy_xh = sum(dy * xh), xh = (x - mean - remainder) * k, over all elements, excluded finite ones too.
 * With BN_RELU dy counts only where y, recomputed as bn_standardize computes it, is > 0. */
BN_API int bn_backward_sums(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* w,
                            const int64_t wdims[4], const void* mean, const void* remainder, const void* variance,
                            double epsilon, const void* scale, const void* offset, int activation,
                            void* sum_dy, void* sum_dy_xh);

/* dx = k * scale * (dy - live * w / count * (sum_dy + xh * sum_dy_xh)), the second term 0 where count is 0.
 * live[G*C] is 1 where batch statistics normalized and 0 where moving ones did; NULL means all 1.
 * frozen = 1 means all 0: sums and count are then not read and may be NULL. */
BN_API int bn_backward_input(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* w,
                             const int64_t wdims[4], const void* count, const void* mean, const void* remainder,
                             const void* variance, double epsilon, const void* scale, const void* offset, int activation,
                             const void* live, int frozen, const void* sum_dy, const void* sum_dy_xh, void* dx);

/* bn_backward_sums followed by bn_backward_input with those sums, in fewer passes over memory. */
BN_API int bn_backward(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* w,
                       const int64_t wdims[4], const void* count, const void* mean, const void* remainder,
                       const void* variance, double epsilon, const void* scale, const void* offset, int activation,
                       const void* live, int frozen, void* sum_dy, void* sum_dy_xh, void* dx);

/* A residual: y = activation(standardize(x) + residual), one more array like x in the same passes. Each function below is
 * the one of its name without `_add`, which is this one with NULL for what is new; residual may be NULL.
 * y, read for BN_RELU only, is what the forward function returned: dy counts where y > 0. NULL recomputes y from x, as
 * is right without a residual. d_residual is dy where it counts, excluded elements too; it may be NULL, or dy itself. */
BN_API int bn_standardize_add(int dtype, const int64_t dims[5], const void* x, const void* residual, const void* w,
                              const int64_t wdims[4], const void* mean, const void* remainder, const void* variance,
                              double epsilon, const void* scale, const void* offset, int activation, void* y);
BN_API int bn_forward_add(int dtype, const int64_t dims[5], const void* x, const void* residual, const void* w,
                          const int64_t wdims[4], double epsilon, const void* scale, const void* offset, int activation,
                          void* mean, void* remainder, void* variance, void* count, void* y);
BN_API int bn_backward_sums_add(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* y,
                                const void* w, const int64_t wdims[4], const void* mean, const void* remainder,
                                const void* variance, double epsilon, const void* scale, const void* offset,
                                int activation, void* sum_dy, void* sum_dy_xh);
BN_API int bn_backward_input_add(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* y,
                                 const void* w, const int64_t wdims[4], const void* count, const void* mean,
                                 const void* remainder, const void* variance, double epsilon, const void* scale,
                                 const void* offset, int activation, const void* live, int frozen, const void* sum_dy,
                                 const void* sum_dy_xh, void* dx, void* d_residual);
BN_API int bn_backward_add(int dtype, const int64_t dims[5], const void* x, const void* dy, const void* y, const void* w,
                           const int64_t wdims[4], const void* count, const void* mean, const void* remainder,
                           const void* variance, double epsilon, const void* scale, const void* offset, int activation,
                           const void* live, int frozen, void* sum_dy, void* sum_dy_xh, void* dx, void* d_residual);

/* The moving averages after a batch whose moments, S[groups * columns] and count S[groups], bn_moments measured:
 *     new = momentum * old + (1 - momentum) * measured, with variance * count / (count - 1) where `unbiased` and count > 1.
 * A channel with count 0, or, unless `propagate`, with a mean or variance that is not finite or a variance below 0, keeps
 * its values bit for bit, and its `skipped` grows by 1; `updates`, one number, grows by 1 in any case. remainder may be
 * NULL, and the old and the new of either counter together. */
BN_API int bn_remember(int dtype, int64_t groups, int64_t columns, const void* mean, const void* remainder,
                       const void* variance, const void* count, double momentum, int unbiased, int propagate,
                       const void* old_mean, const void* old_variance, const int32_t* old_skipped,
                       const int32_t* old_updates, void* new_mean, void* new_variance, int32_t* new_skipped,
                       int32_t* new_updates);

/* One sentence for a code; never NULL. */
BN_API const char* bn_error(int code);

/* Raised whenever a prototype above changes its meaning. A loader refuses another number. */
BN_API int bn_abi_version(void);

/* The instruction set chosen: "baseline", "v3" (AVX2, FMA, F16C), "v4" (AVX-512) or "v4-bf16" (and its bfloat16
 * conversion). BATCHNORM_ISA=baseline|v3|v4 lowers it; read once, at the first call. */
BN_API const char* bn_isa(void);

/* How many threads a call may use; n <= 0 restores the default: OMP_NUM_THREADS, else the cores this process may use. */
BN_API void bn_set_threads(int n);
BN_API int bn_get_threads(void);

/* What was learned so far about where to store results, in one sweep or two, and fetching ahead (src/tune.h): a line for
 * each operation, type, layout, size class and number of threads. Writes at most size - 1 characters and a 0; returns how
 * many there are. BATCHNORM_TUNE=off, read once, keeps to what the sizes of the caches suggest; results are the same bits. */
BN_API size_t bn_learned(char* text, size_t size);

/* Borrow the OpenMP team of a libgomp that this process has loaded already: path, or "libgomp.so.1" for NULL.
 * Two spinning teams in one process slow each other down. Returns 1 when borrowed, 0 when there is none. */
BN_API int bn_borrow_openmp(const char* path);

/* Ask for huge pages for an output of n >= BN_HUGE bytes before its first touch: faulting 4 KB pages costs more than the
 * kernel. A block that an allocator recycled, pages and all, is left alone. Returns 1 when advised. */
#define BN_HUGE ((size_t)2 << 20)
BN_API int bn_advise_huge(void* p, size_t n);

#ifdef __cplusplus
}
#endif
#endif
