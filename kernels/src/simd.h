// One vector type per arithmetic type, as wide as the level that compiles this file. Without GNU vectors a "vector" is
// one number and the kernels are plain loops: operators, select() and the tags below mean the same.
#pragma once
#include <math.h>

#include "types.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define BN_V4 1
#define BN_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BN_V3 1
#define BN_BYTES 32
#elif defined(__GNUC__)
#define BN_BYTES 16
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#define BN_NEON 1
#include <arm_neon.h>
#endif
#if defined(__GNUC__)
#define BN_INLINE static inline __attribute__((always_inline))
#define BN_INLINE_MEMBER inline __attribute__((always_inline))
#define BN_UNROLL _Pragma("GCC unroll 8")  // so that arrays of vectors are registers
#define BN_PREFETCH(p) __builtin_prefetch(p, 0, 2)  // into the second level: more can be under way than into the first
#else
#define BN_INLINE static inline
#define BN_INLINE_MEMBER inline
#define BN_UNROLL
#define BN_PREFETCH(p) ((void)(p))
#endif

namespace BN_LEVEL {

#if defined(BN_BYTES)
typedef float VF __attribute__((vector_size(BN_BYTES)));
typedef double VD __attribute__((vector_size(BN_BYTES)));
#else
typedef float VF;
typedef double VD;
#endif

template <class S> struct Lanes;
template <> struct Lanes<float> { using V = VF; enum { N = sizeof(VF) / sizeof(float) }; };
template <> struct Lanes<double> { using V = VD; enum { N = sizeof(VD) / sizeof(double) }; };
template <class T> using StatOf = typename StatisticOf<T>::type;
template <class T> using VecOf = typename Lanes<StatOf<T>>::V;
template <class T> struct Count { enum { N = Lanes<StatOf<T>>::N }; };

struct Full {};          // a whole vector
struct Part { int n; };  // the first n lanes; 0 < n < N. Loads give 0 in the others, stores leave them alone

BN_INLINE VF splat(float v) { return v - VF{}; }
BN_INLINE VD splat(double v) { return v - VD{}; }
template <class M, class V> BN_INLINE V select(M mask, V yes, V no) { return mask ? yes : no; }
template <class V> BN_INLINE auto finite(V v) { return (v - v) == V{}; }

#if defined(BN_V4)
BN_INLINE VF fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
BN_INLINE VD fma(VD a, VD b, VD c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(BN_V3)
BN_INLINE VF fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
BN_INLINE VD fma(VD a, VD b, VD c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(BN_NEON)
BN_INLINE VF fma(VF a, VF b, VF c) { return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
BN_INLINE VD fma(VD a, VD b, VD c) { return (VD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
BN_INLINE VF fma(VF a, VF b, VF c) { return a * b + c; }
BN_INLINE VD fma(VD a, VD b, VD c) { return a * b + c; }
#endif

// ---- plain forms, one lane at a time: any type, any level
template <class T> BN_INLINE VecOf<T> load_lanes(const T* p, int n) {
  StatOf<T> lanes[Count<T>::N] = {};
  for (int i = 0; i < n; i++) lanes[i] = widen(p[i]);
  VecOf<T> v;
  memcpy(&v, lanes, sizeof v);
  return v;
}
template <class T> BN_INLINE void store_lanes(T* p, VecOf<T> v, int n) {
  StatOf<T> lanes[Count<T>::N];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < n; i++) narrow(lanes[i], p + i);
}
template <class T> BN_INLINE VecOf<T> load(const T* p, Full) { return load_lanes(p, Count<T>::N); }
template <class T> BN_INLINE VecOf<T> load(const T* p, Part t) { return load_lanes(p, t.n); }
template <class T> BN_INLINE void store(T* p, VecOf<T> v, Full) { store_lanes(p, v, Count<T>::N); }
template <class T> BN_INLINE void store(T* p, VecOf<T> v, Part t) { store_lanes(p, v, t.n); }
template <class T> BN_INLINE void stream(T* p, VecOf<T> v) { store(p, v, Full{}); }

BN_INLINE VF load(const float* p, Full) { VF v; memcpy(&v, p, sizeof v); return v; }
BN_INLINE VD load(const double* p, Full) { VD v; memcpy(&v, p, sizeof v); return v; }
BN_INLINE void store(float* p, VF v, Full) { memcpy(p, &v, sizeof v); }
BN_INLINE void store(double* p, VD v, Full) { memcpy(p, &v, sizeof v); }

#if defined(BN_V4)
BN_INLINE __mmask16 first16(int n) { return (__mmask16)((1u << n) - 1); }
BN_INLINE __mmask8 first8(int n) { return (__mmask8)((1u << n) - 1); }
BN_INLINE VF load(const float* p, Part t) { return _mm512_maskz_loadu_ps(first16(t.n), p); }
BN_INLINE VD load(const double* p, Part t) { return _mm512_maskz_loadu_pd(first8(t.n), p); }
BN_INLINE void store(float* p, VF v, Part t) { _mm512_mask_storeu_ps(p, first16(t.n), v); }
BN_INLINE void store(double* p, VD v, Part t) { _mm512_mask_storeu_pd(p, first8(t.n), v); }
BN_INLINE void stream(float* p, VF v) { _mm512_stream_ps(p, v); }
BN_INLINE void stream(double* p, VD v) { _mm512_stream_pd(p, v); }

BN_INLINE VF from_bits(__m256i u, half) { return _mm512_cvtph_ps(u); }
BN_INLINE VF from_bits(__m256i u, bfloat) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(u), 16)); }
BN_INLINE __m256i to_bits(VF v, half) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#if defined(__AVX512BF16__)  // one instruction; it flushes numbers below 1.2e-38 to 0
BN_INLINE __m256i to_bits(VF v, bfloat) { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
BN_INLINE __m256i to_bits(VF v, bfloat) {
  const __m512i u = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(r);
}
#endif
#define BN_SIXTEEN(T)                                                                                              \
  BN_INLINE VF load(const T* p, Full) { return from_bits(_mm256_loadu_si256((const __m256i*)p), T{}); }            \
  BN_INLINE VF load(const T* p, Part t) { return from_bits(_mm256_maskz_loadu_epi16(first16(t.n), p), T{}); }      \
  BN_INLINE void store(T* p, VF v, Full) { _mm256_storeu_si256((__m256i*)p, to_bits(v, T{})); }                    \
  BN_INLINE void store(T* p, VF v, Part t) { _mm256_mask_storeu_epi16(p, first16(t.n), to_bits(v, T{})); }         \
  BN_INLINE void stream(T* p, VF v) { _mm256_stream_si256((__m256i*)p, to_bits(v, T{})); }
BN_SIXTEEN(half)
BN_SIXTEEN(bfloat)
#elif defined(BN_V3)
static const int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
BN_INLINE __m256i first8(int n) { return _mm256_loadu_si256((const __m256i*)(kFirst + 8 - n)); }
BN_INLINE __m256i first4(int n) { return first8(2 * n); }
BN_INLINE VF load(const float* p, Part t) { return _mm256_maskload_ps(p, first8(t.n)); }
BN_INLINE VD load(const double* p, Part t) { return _mm256_maskload_pd(p, first4(t.n)); }
BN_INLINE void store(float* p, VF v, Part t) { _mm256_maskstore_ps(p, first8(t.n), v); }
BN_INLINE void store(double* p, VD v, Part t) { _mm256_maskstore_pd(p, first4(t.n), v); }
BN_INLINE void stream(float* p, VF v) { _mm256_stream_ps(p, v); }
BN_INLINE void stream(double* p, VD v) { _mm256_stream_pd(p, v); }

BN_INLINE VF from_bits(__m128i u, half) { return _mm256_cvtph_ps(u); }
BN_INLINE VF from_bits(__m128i u, bfloat) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(u), 16)); }
BN_INLINE __m128i to_bits(VF v, half) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
BN_INLINE __m128i to_bits(VF v, bfloat) {
  const __m256i u = _mm256_castps_si256(v), high = _mm256_srli_epi32(u, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i fixed = _mm256_blendv_epi8(r, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(fixed), _mm256_extracti128_si256(fixed, 1));
}
#define BN_SIXTEEN(T)                                                                                              \
  BN_INLINE VF load(const T* p, Full) { return from_bits(_mm_loadu_si128((const __m128i*)p), T{}); }               \
  BN_INLINE void store(T* p, VF v, Full) { _mm_storeu_si128((__m128i*)p, to_bits(v, T{})); }                       \
  BN_INLINE void stream(T* p, VF v) { _mm_stream_si128((__m128i*)p, to_bits(v, T{})); }
BN_SIXTEEN(half)
BN_SIXTEEN(bfloat)
#elif defined(BN_NEON)
BN_INLINE VF load(const half* p, Full) { return (VF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
BN_INLINE VF load(const bfloat* p, Full) { return (VF)vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16)); }
BN_INLINE void store(half* p, VF v, Full) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }
BN_INLINE void store(bfloat* p, VF v, Full) {  // to nearest, ties to even: half of the last bit, and a little less where that is 0
  const float32x4_t number = vbslq_f32(vceqq_f32((float32x4_t)v, (float32x4_t)v), (float32x4_t)v, vdupq_n_f32(NAN));
  const uint32x4_t u = vreinterpretq_u32_f32(number), odd = vtstq_u32(u, vdupq_n_u32(0x10000));  // all bits where it is 1
  vst1_u16(&p->bits, vaddhn_u32(u, vsubq_u32(vdupq_n_u32(0x7fff), odd)));
}
#elif defined(__SSE2__)
BN_INLINE void stream(float* p, VF v) { _mm_stream_ps(p, v); }
BN_INLINE void stream(double* p, VD v) { _mm_stream_pd(p, v); }
#endif

BN_INLINE void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// A mask that is true in the first n lanes.
template <class S> BN_INLINE auto lanes_below(int n) {
  S index[Lanes<S>::N];
  for (int i = 0; i < (int)Lanes<S>::N; i++) index[i] = (S)i;
  typename Lanes<S>::V v;
  memcpy(&v, index, sizeof v);
  return v < splat((S)n);
}

// The sum of N numbers, N a power of two, always in the same order; overwrites them.
template <int N> BN_INLINE double total(double* lanes) {
  for (int half = N / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace BN_LEVEL
