// Element types, and 16-bit conversions one element at a time. Everything here is static: each instruction-set level
// compiles its own copy, so that the linker cannot hand AVX-512 code to an older processor.
#pragma once
#include <stdint.h>
#include <string.h>

struct half { uint16_t bits; };
struct bfloat { uint16_t bits; };

static inline uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float float_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

static inline float widen(float v) { return v; }
static inline double widen(double v) { return v; }
static inline float widen(bfloat v) { return float_of((uint32_t)v.bits << 16); }

static inline float widen(half v) {
  const uint32_t sign = (uint32_t)(v.bits & 0x8000u) << 16, rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13) | (rest > 0x7c00u ? 0x400000u : 0));
  if (rest >= 0x400u) return float_of(sign | ((rest << 13) + (112u << 23)));
  // A subnormal half: no subnormal float on the way, so that flush-to-zero modes cannot lose it.
  const float magnitude = (float)rest * float_of(103u << 23);
  return float_of(sign | bits_of(magnitude));
}

static inline void narrow(float v, float* out) { *out = v; }
static inline void narrow(double v, double* out) { *out = v; }

static inline void narrow(float v, bfloat* out) {  // round to nearest, ties to even
  const uint32_t u = bits_of(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out->bits = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

static inline void narrow(float v, half* out) {  // round to nearest, ties to even
  const uint32_t u = bits_of(v), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  uint32_t h;
  if (rest > 0x7f800000u) {
    h = 0x7e00u | ((rest >> 13) & 0x3ffu);
  } else if (rest >= 0x47800000u) {  // 65536 and above; 65520..65535 round up by the carry below
    h = 0x7c00u;
  } else if (rest >= 0x38800000u) {
    h = (rest - (112u << 23) + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  } else {  // subnormal half: adding 0.5 puts its last bit at the last bit of a float
    h = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
  }
  out->bits = (uint16_t)(sign | h);
}

// The type of statistics and of arithmetic that belongs to an element type.
template <class T> struct StatisticOf { using type = float; };
template <> struct StatisticOf<double> { using type = double; };
