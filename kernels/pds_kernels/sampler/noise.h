// A row's Gumbel noise: Philox's words as philox.py has them, and bounds of what they come to.
#pragma once

#include "vec.h"

namespace pds {

typedef uint64_t vq __attribute__((vector_size(4 * W)));
inline constexpr int Q = W / 2;     // Philox calls of one vector, each for four tokens
inline constexpr int BLOCK = 4 * Q; // tokens whose words are made at once: two vectors
inline constexpr int ROUNDS = 10;

// The products of lanes' lower halves.
inline vq product(vq a, vq b) {
#if defined(__AVX512F__)
  return bits_of<vq>(_mm512_mul_epu32(bits_of<__m512i>(a), bits_of<__m512i>(b)));
#elif defined(__AVX2__)
  return bits_of<vq>(_mm256_mul_epu32(bits_of<__m256i>(a), bits_of<__m256i>(b)));
#elif defined(__SSE2__)
  return bits_of<vq>(_mm_mul_epu32(bits_of<__m128i>(a), bits_of<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Which of a vector's numbers are not at most `bound`: NaN is not. One bit each.
inline uint32_t above(vf x, vf bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(bits_of<__m512>(x), bits_of<__m512>(bound), _CMP_NLE_UQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(bits_of<__m256>(x), bits_of<__m256>(bound), _CMP_NLE_UQ));
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpnle_ps(bits_of<__m128>(x), bits_of<__m128>(bound)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W; i++) bits |= uint32_t(!(x[i] <= bound[i])) << i;
  return bits;
#endif
}

class Noise {
 public:
  // Words of philox.Draws, in the lower halves of 64 bits.
  Noise(int64_t low, int64_t high, int64_t index, int64_t choice)
      : index_(uint32_t(index) + vq{}), choice_(uint32_t(choice) + vq{}) {
    auto first = uint32_t(low), second = uint32_t(high);
    for (int round = 0; round < ROUNDS; round++) {
      keys_[round][0] = first + vq{}, keys_[round][1] = second + vq{};
      first += 0x9E3779B9u, second += 0xBB67AE85u;
    }
    // Lanes in an order in which a lane's words and its neighbour's interleave to consecutive ones
    for (int i = 0; i < Q; i++) order_[i] = i / 2 + i % 2 * (Q / 2);
  }

  // The words of BLOCK tokens, from id 4 * call on.
  inline void words(uint64_t call, vu (&out)[2]) const {
    const vq m0 = 0xD2511F53u + vq{}, m1 = 0xCD9E8D57u + vq{};
    vq c0 = order_ + call, c1 = index_, c2 = choice_, c3 = {};
    // Upper halves hold what no product reads
#pragma GCC unroll 10
    for (int round = 0; round < ROUNDS; round++) {
      const vq first = product(c0, m0), second = product(c2, m1);
      c0 = (second >> 32) ^ c1 ^ keys_[round][0];
      c1 = second;
      c2 = (first >> 32) ^ c3 ^ keys_[round][1];
      c3 = first;
    }
    const vq low = 0xffffffffu + vq{};
    const vq a = (c0 & low) | (c1 << 32), b = (c2 & low) | (c3 << 32);
    vq even, odd;
    for (int i = 0; i < Q; i += 2) {
      even[i] = i, even[i + 1] = Q + i;
      odd[i] = i + 1, odd[i + 1] = Q + i + 1;
    }
    out[0] = bits_of<vu>(__builtin_shuffle(a, b, even));
    out[1] = bits_of<vu>(__builtin_shuffle(a, b, odd));
  }

 private:
  vq keys_[ROUNDS][2];
  vq index_, choice_, order_;
};

// Standard Gumbel noise, as the definition has it.
inline double gumbel(uint32_t word) {
  const double uniform = (double(word) + 0.5) * 0x1p-32;
  return -std::log(-std::log1p(-uniform));
}

// At least `gumbel`, and at most 0.07 more where that is above 4.
//
// -log(1 - u) is at least u, so the noise is at most -log(u). A float's exponent and mantissa, read
// as one number, are its log2 or up to 0.09 less.
inline vf ceiling(vu words) {
  const vf half = __builtin_convertvector(bits_of<vi>(words >> 1), vf);
  const vf log2 = __builtin_convertvector(bits_of<vi>(half), vf);  // times 2^23, plus 127 * 2^23
  // 31: of 2^32 twice as many as half. The thousandth is far more than rounding takes.
  return float((31 + 127) * 0.69314718056 + 0.001) - log2 * float(0.69314718056 / (1 << 23));
}

}  // namespace pds
