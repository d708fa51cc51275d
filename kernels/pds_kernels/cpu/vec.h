// Vectors of floats, as wide as the instructions that this file is compiled for.
//
// They are GCC's own vector types, so one text serves AVX-512, AVX2 and any other processor. What
// AVX-512 does better, its intrinsics do here, and nowhere else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pds {

#if defined(__AVX512F__)
inline constexpr int W = 16;
#elif defined(__AVX2__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

struct bf16 {
  uint16_t bits;
};
using half = _Float16;
typedef half vhalf __attribute__((vector_size(2 * W)));

template <class To, class From>
inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

// ---- numbers one by one ------------------------------------------------------------------------

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }
inline float widen(half x) { return float(x); }

template <class T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) { return x; }
template <>
inline bf16 narrow<bf16>(float x) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t u = bits_of<uint32_t>(x);
  if (x != x) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <>
inline half narrow<half>(float x) { return half(x); }

// ---- vectors -----------------------------------------------------------------------------------

inline vf splat(float x) { return x - vf{}; }

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline vf load(const bf16* p) {
  vh v;
  std::memcpy(&v, p, sizeof v);
  return bits_of<vf>(__builtin_convertvector(v, vu) << 16);
}
inline vf load(const half* p) {
  vhalf v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vf);
}

// A bf16 pair lies in each 32 bits: the one with the even index below.
inline vf lower(vu pairs) { return bits_of<vf>(pairs << 16); }
inline vf upper(vu pairs) { return bits_of<vf>(pairs & 0xffff0000u); }

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
inline vh rounded(vf v) {
#if defined(__AVX512BF16__)
  return bits_of<vh>(_mm512_cvtneps_pbh(bits_of<__m512>(v)));
#else
  vu u = bits_of<vu>(v);
  vu even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  vu nan = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? even : nan, vh);
#endif
}
inline void store(bf16* p, vf v) {
  vh r = rounded(v);
  std::memcpy(p, &r, sizeof r);
}
inline void store(half* p, vf v) {
  vhalf r = __builtin_convertvector(v, vhalf);
  std::memcpy(p, &r, sizeof r);
}

// The first n of a vector's numbers, 0 <= n <= W; what is not loaded is zero.
template <class T>
inline vf load(const T* p, int n) {
  if (n >= W) return load(p);
  T all[W] = {};
  for (int i = 0; i < n; i++) all[i] = p[i];
  return load(all);
}
template <class T>
inline void store(T* p, vf v, int n) {
  if (n >= W) return store(p, v);
  T all[W];
  store(all, v);
  for (int i = 0; i < n; i++) p[i] = all[i];
}

// Each number rounded as a T is.
template <class T>
inline vf as(vf x) {
  T all[W];
  store(all, x);
  return load(all);
}
template <>
inline vf as<float>(vf x) { return x; }

inline vf greater(vf a, vf b) { return a > b ? a : b; }

inline float sum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(bits_of<__m512>(v));
#else
  float part[W], all = 0;
  store(part, v);
  for (int step = W / 2; step; step /= 2)
    for (int i = 0; i < step; i++) part[i] += part[i + step];
  all = part[0];
  return all;
#endif
}
inline float greatest(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(bits_of<__m512>(v));
#else
  float part[W];
  store(part, v);
  for (int step = W / 2; step; step /= 2)
    for (int i = 0; i < step; i++) part[i] = part[i] > part[i + step] ? part[i] : part[i + step];
  return part[0];
#endif
}

// exp(x) within two last places; 0 below -87.3, infinity above 88.7, NaN for NaN.
inline vf exp(vf x) {
  const vf least = splat(-87.33f), most = splat(88.72f);
  vf y = x < least ? least : x;
  y = y > most ? most : y;
  vf n = y * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number in the low bits
  vi power = bits_of<vi>(n) - 0x4b400000;
  n = n - 12582912.0f;
  vf r = y - n * 0.693359375f;  // ln 2 in two parts, so that the first product is exact
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  vi low = power >> 1;  // two factors, as 2^128 itself is no float
  p = p * bits_of<vf>((low + 127) << 23) * bits_of<vf>((power - low + 127) << 23);
  p = x < least ? splat(0) : p;
  p = x > most ? splat(std::numeric_limits<float>::infinity()) : p;
  return x == x ? p : x;
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

// The dot products of sixteen (W) pairs of bf16 numbers, added to `sums`.
inline vf dot(vf sums, vu a, vu b) {
#if defined(__AVX512BF16__)
  return bits_of<vf>(_mm512_dpbf16_ps(bits_of<__m512>(sums), (__m512bh)bits_of<__m512i>(a),
                                      (__m512bh)bits_of<__m512i>(b)));
#else
  return sums + lower(a) * lower(b) + upper(a) * upper(b);
#endif
}

}  // namespace pds
