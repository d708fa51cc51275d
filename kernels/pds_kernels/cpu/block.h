// Attention of some rows over one block of keys and values that are packed for it: scores, their
// shares, and what the shares take of the values.
//
// A row is one head's query of one token. Rows are computed with in C: bf16 where the processor
// multiplies pairs of it, else float. Both products are of one form, rows by steps times steps by
// columns, and a step holds a pair of numbers for bf16:
//
//   scores = queries [rows, dim] · keys [steps of dim, KEYS]
//   sums  += shares [rows, KEYS] · values [steps of KEYS, columns]
//
// Each number of a row is one sum in the order of the steps, whatever rows are beside it.
#pragma once

#include <algorithm>
#include <utility>

#include "op.h"
#include "vec.h"

namespace pds {

constexpr int KEYS = 64;  // of a block
#if defined(__AVX512F__)
constexpr int MOST = 12;  // rows that are multiplied at once, by two vectors
#else
constexpr int MOST = 6;
#endif
constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr float LOG2_E = 1.44269504f;

template <class C>
constexpr int PAIR = sizeof(C) == 2 ? 2 : 1;  // numbers of a step

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- reading ahead ------------------------------------------------------------------------------

// The rows of keys and values of the next block come from memory while one is computed with, line
// by line: small pages leave a processor nothing to guess from, and many lines at once wait for
// each other.
class Ahead {
 public:
  Ahead(const void* const* rows, int64_t count, int64_t bytes)
      : row_(rows), end_(rows + count), bytes_(bytes) {}

  void fetch(int lines) {
    for (; lines > 0 && row_ != end_; lines--) {
      __builtin_prefetch(static_cast<const char*>(*row_) + at_, 0, 2);
      at_ += 64;
      if (at_ >= bytes_) at_ = 0, row_++;
    }
  }

 private:
  const void* const* row_;
  const void* const* end_;
  int64_t bytes_;
  int64_t at_ = 0;
};

// ---- packing -----------------------------------------------------------------------------------

typedef uint16_t vh2 __attribute__((vector_size(4 * W)));

template <class Vector, int HALF, int... I>
inline Vector interleave(Vector a, Vector b, std::integer_sequence<int, I...>) {
  constexpr int N = sizeof...(I);
  return __builtin_shufflevector(a, b, (I % 2 * N + I / 2 + HALF * N / 2)...);
}
template <class Vector>
inline Vector lower_halves(Vector a, Vector b) {
  constexpr int N = sizeof(Vector) / sizeof(a[0]);
  return interleave<Vector, 0>(a, b, std::make_integer_sequence<int, N>());
}
template <class Vector>
inline Vector upper_halves(Vector a, Vector b) {
  constexpr int N = sizeof(Vector) / sizeof(a[0]);
  return interleave<Vector, 1>(a, b, std::make_integer_sequence<int, N>());
}

// Each pass moves one bit of an element's place from its row to its column.
inline void transpose(vu (&x)[W]) {
#pragma GCC unroll 4
  for (int bit = 1; bit < W; bit *= 2) {
    vu y[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; i++) {
      y[2 * i] = lower_halves(x[i], x[i + W / 2]);
      y[2 * i + 1] = upper_halves(x[i], x[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i] = y[i];
  }
}

// W steps of a row.
template <class C, class Kv>
inline vu steps_of(const Kv* row) {
  if constexpr (PAIR<C> == 1) {
    return bits_of<vu>(load(row));
  } else {
    vu v;
    std::memcpy(&v, row, sizeof v);
    return v;
  }
}

// x[step] of W rows: the step of each of them, side by side.
template <class C, class Kv>
inline void steps_of_rows(const Kv* const* rows, int64_t at, vu (&x)[W]) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == sizeof(Kv)) {
    // Rows four apart are loaded into one vector, which leaves half of the shuffles
    const auto part = [&](int row, int quarter) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at) + quarter);
    };
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++) {
      __m512i y[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        y[i] = _mm512_zextsi128_si512(part(i, quarter));
        y[i] = _mm512_mask_broadcast_i32x4(y[i], 0x00f0, part(i + 4, quarter));
        y[i] = _mm512_mask_broadcast_i32x4(y[i], 0x0f00, part(i + 8, quarter));
        y[i] = _mm512_mask_broadcast_i32x4(y[i], 0xf000, part(i + 12, quarter));
      }
      const __m512i a = _mm512_unpacklo_epi32(y[0], y[1]), b = _mm512_unpackhi_epi32(y[0], y[1]);
      const __m512i c = _mm512_unpacklo_epi32(y[2], y[3]), d = _mm512_unpackhi_epi32(y[2], y[3]);
      x[4 * quarter] = bits_of<vu>(_mm512_unpacklo_epi64(a, c));
      x[4 * quarter + 1] = bits_of<vu>(_mm512_unpackhi_epi64(a, c));
      x[4 * quarter + 2] = bits_of<vu>(_mm512_unpacklo_epi64(b, d));
      x[4 * quarter + 3] = bits_of<vu>(_mm512_unpackhi_epi64(b, d));
    }
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < W; i++) x[i] = steps_of<C>(rows[i] + at);
  transpose(x);
}

// The end of `count` rows that is no whole vector, beside zeros: from[row] is its begin, but for
// `at` numbers.
template <class C, class Kv, int ROWS>
struct Ends {
  Kv numbers[ROWS][W * PAIR<C>] = {};
  const Kv* from[ROWS];

  Ends(const Kv* const* rows, int64_t at, int64_t dim) {
    for (int row = 0; row < ROWS; row++) {
      for (int64_t i = at; i < dim; i++) numbers[row][i - at] = rows[row][i];
      from[row] = numbers[row];
    }
  }
};

// rows[KEYS] → to [steps of dim, KEYS], its steps rounded up to W.
template <class C, class Kv>
void pack_keys(const Kv* const* rows, int64_t dim, C* to, Ahead& ahead) {
  constexpr int N = W * PAIR<C>;
  const auto put = [&](int key, int64_t at, const vu(&x)[W]) {
    C* into = to + (at / PAIR<C> * KEYS + key) * PAIR<C>;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) std::memcpy(into + i * KEYS * PAIR<C>, &x[i], sizeof x[i]);
  };
  for (int key = 0; key < KEYS; key += W) {
    vu x[W];
    int64_t at = 0;
    for (; at + N <= dim; at += N) {
      ahead.fetch(W / 2);
      steps_of_rows<C>(rows + key, at, x);
      put(key, at, x);
    }
    if (at == dim) continue;
    steps_of_rows<C>(Ends<C, Kv, W>(rows + key, at, dim).from, 0, x);
    put(key, at, x);
  }
}

// rows[KEYS] → to [steps of KEYS, columns]. What lies between dim and columns is zero.
template <class C, class Kv>
void pack_values(const Kv* const* rows, int64_t dim, int64_t columns, C* to, Ahead& ahead) {
  constexpr int N = W * PAIR<C>;
  const auto put = [&](const Kv* const* from, int64_t at) {
    if constexpr (PAIR<C> == 1) {
      store(to, load(from[0] + at));
    } else {
      const vh2 a = bits_of<vh2>(steps_of<C>(from[0] + at));
      const vh2 b = bits_of<vh2>(steps_of<C>(from[1] + at));
      const vh2 lower = lower_halves(a, b), upper = upper_halves(a, b);
      std::memcpy(to, &lower, sizeof lower);
      std::memcpy(to + N, &upper, sizeof upper);
    }
    to += N * PAIR<C>;
  };
  for (int key = 0; key < KEYS; key += PAIR<C>) {
    int64_t at = 0;
    for (; at + N <= dim; at += N) {
      ahead.fetch(1);
      put(rows + key, at);
    }
    if (at < dim) put(Ends<C, Kv, PAIR<C>>(rows + key, at, dim).from, 0), at += N;
    for (; at < columns; at += N, to += N * PAIR<C>) std::memset(to, 0, N * PAIR<C> * sizeof(C));
  }
}

// ---- products ----------------------------------------------------------------------------------

template <class C>
struct Product {
  const C* a;  // [rows, steps]
  int64_t a_stride;
  const C* b;  // [steps, columns]
  int64_t b_stride;
  int64_t steps;
  int64_t columns;  // a multiple of 2 W
  float* out;       // [rows, columns]
  int64_t out_stride;
  Ahead* ahead;
};

template <class C, int M, int V, bool ADD>
inline void tile(const Product<C>& x, int64_t column) {
  vf sums[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++)
      sums[m][v] = ADD ? load(x.out + m * x.out_stride + column + v * W) : vf{};
  const C* a = x.a;
  const C* b = x.b + column * PAIR<C>;
  Ahead ahead = *x.ahead;
  for (int64_t step = 0; step < x.steps; step++, a += PAIR<C>, b += x.b_stride) {
    ahead.fetch(2);
    vu by[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) std::memcpy(&by[v], b + v * W * PAIR<C>, sizeof by[v]);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      uint32_t bits;
      std::memcpy(&bits, a + m * x.a_stride, sizeof bits);
      const vu own = vu{} + bits;
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        if constexpr (PAIR<C> == 2) sums[m][v] = dot(sums[m][v], own, by[v]);
        else sums[m][v] += bits_of<vf>(own) * bits_of<vf>(by[v]);
      }
    }
  }
  *x.ahead = ahead;
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(x.out + m * x.out_stride + column + v * W, sums[m][v]);
}

// `rows` of them, at most MOST.
template <class C, bool ADD, int M = MOST>
void multiply(const Product<C>& x, int64_t rows) {
  if constexpr (M > 1) {
    if (rows < M) return multiply<C, ADD, M - 1>(x, rows);
  }
  int64_t column = 0;
  if constexpr (M <= MOST / 2)  // few rows take more columns: enough sums to wait for none of them
    for (; column + 4 * W <= x.columns; column += 4 * W) tile<C, M, 4, ADD>(x, column);
  for (; column < x.columns; column += 2 * W) tile<C, M, 2, ADD>(x, column);
}

// ---- shares ------------------------------------------------------------------------------------

// 2 ** x for x <= 0, within two last places; 0 below -126; NaN for NaN.
inline vf power(vf x) {
  const vf least = splat(-126.0f);
  vf y = least > x ? least : x;
#if defined(__AVX512F__)
  const vf n = bits_of<vf>(_mm512_roundscale_ps(bits_of<__m512>(y), 0));
  const vf r = y - n;
#else
  const vf shifted = y + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number in the low bits
  const vf r = y - (shifted - 12582912.0f);
#endif
  vf p = splat(1.326472731e-3f);  // 2 ** r within 1e-7 for |r| <= 1/2, and exact for 0
  p = p * r + 9.671512991e-3f;
  p = p * r + 5.550733581e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  p = bits_of<vf>(_mm512_scalef_ps(bits_of<__m512>(p), bits_of<__m512>(n)));
#else
  p = p * bits_of<vf>((bits_of<vi>(shifted) - 0x4b400000 + 127) << 23);
#endif
  return least > x ? vf{} : p;
}
inline float power(float x) { return power(splat(x))[0]; }

// How a product becomes a score, of base 2.
struct Scoring {
  float factor;
  float cap;  // 0: none
};

// The parts of a softmax over some keys, before it is divided by its total.
struct Parts {
  float* tops;    // [rows] the greatest score
  float* totals;  // [rows] of 2 ** (score - top)
  float* sums;    // [rows, columns] the same by the values
};

// One row's, while they grow.
struct Row {
  float& top;
  float* totals;  // [W] shares by their place in a vector
  float* sums;
  int64_t columns;
};

// A row's shares of a block, of which it sees the keys first <= key < end.
template <class C>
inline void weigh(const float* products, int64_t first, int64_t end, const Scoring& how,
                  const Row& row, C* shares) {
  constexpr int N = KEYS / W;
  vf scores[N], best = splat(NONE);
  for (int i = 0; i < N; i++) scores[i] = load(products + i * W) * how.factor;
  if (how.cap != 0)
    for (vf& x : scores) x = (1.0f - 2.0f / (1.0f + exp(2.0f * x))) * how.cap;
  if (first > 0 || end < KEYS) {
    vi at;
    for (int i = 0; i < W; i++) at[i] = i;
    for (vf& x : scores) {
      x = (at >= int32_t(first)) & (at < int32_t(end)) ? x : splat(NONE);
      at += W;
    }
  }
  for (const vf& x : scores) best = greater(x, best);  // of NaN the second
  const float higher = std::max(row.top, greatest(best));
  if (higher > row.top) {
    const float kept = power(row.top - higher);
    row.top = higher;
    store(row.totals, load(row.totals) * kept);
    for (int64_t column = 0; column < row.columns; column += W)
      store(row.sums + column, load(row.sums + column) * kept);
  }
  const vf base = splat(row.top == NONE ? 0.0f : row.top);
  vf total = load(row.totals);
#pragma GCC unroll 16
  for (int i = 0; i < N; i++) {
    const vf share = power(scores[i] - base);
    total += share;
    store(shares + i * W, share);
  }
  store(row.totals, total);
}

// Parts of two stretches of keys, the earlier ones in `into`.
inline void join(const Parts& into, const Parts& later, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; row++) {
    const float top = std::max(into.tops[row], later.tops[row]);
    const float base = top == NONE ? 0.0f : top;
    const float a = power(into.tops[row] - base), b = power(later.tops[row] - base);
    into.tops[row] = top;
    into.totals[row] = into.totals[row] * a + later.totals[row] * b;
    float* to = into.sums + row * columns;
    const float* from = later.sums + row * columns;
    for (int64_t column = 0; column < columns; column += W)
      store(to + column, load(to + column) * a + load(from + column) * b);
  }
}

}  // namespace pds
