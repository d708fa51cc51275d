// x · weightᵀ of a weight that is packed once, in panels.
//
// A panel is PANEL output columns: two vectors of them. It holds, for two input columns after the
// other, both numbers of each output column side by side (for float: one), as vdpbf16ps multiplies
// them. So a panel is read from its begin to its end, once for some tokens. Panels lie one behind
// the other.
//
// Each result is one sum in the order of the input columns, whatever else is computed beside it: a
// token's numbers do not depend on the batch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "op.h"
#include "vec.h"

namespace pds::panels {

constexpr int PANEL = 2 * W;
#if defined(__AVX512F__)
constexpr int REGISTERS = 24;  // of 32: the rest hold weights and tokens
#else
constexpr int REGISTERS = 12;
#endif
constexpr int MOST = REGISTERS / 2;  // tokens that are multiplied by a panel at once
constexpr int64_t BLOCK = 4 * MOST;  // tokens whose part of x stays in a cache of the second level
constexpr int64_t GRAIN = 4;         // panels that few tokens are multiplied by at once
constexpr int AHEAD = 1024;          // bytes

template <class T>
struct Pair {  // two numbers of 16 bits
  static constexpr int numbers = 2;
};
template <>
struct Pair<float> {
  static constexpr int numbers = 1;
};

// Numbers of one panel.
template <class Wt>
int64_t panel_size(int64_t columns) {
  return ceil_div(columns, Pair<Wt>::numbers) * Pair<Wt>::numbers * PANEL;
}

// A packed weight.
template <class Wt>
struct Panels {
  const Wt* numbers;
  int64_t columns;  // of the input

  const Wt* at(int64_t panel) const { return numbers + panel * panel_size<Wt>(columns); }
};

struct Range {
  int64_t first, end;
};

// Adds to sums[m][v] what tokens m get of two input columns (or one) by BESIDE panels.
template <class X, class Wt, int M, int BESIDE>
inline void step(const X* const* x, int64_t at, const Wt* const* w, vf (&sums)[M][2 * BESIDE]) {
#pragma GCC unroll 8
  for (int p = 0; p < BESIDE; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
      const Wt* from = w[p] + at * PANEL + v * Pair<Wt>::numbers * W;
      __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
      if constexpr (sizeof(Wt) == 4) {
        vf weight = load(from);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) sums[m][2 * p + v] += splat(widen(x[m][at])) * weight;
      } else if constexpr (sizeof(X) == 2) {
        vu weight;
        std::memcpy(&weight, from, sizeof weight);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
          uint32_t both;
          std::memcpy(&both, x[m] + at, sizeof both);
          sums[m][2 * p + v] = dot(sums[m][2 * p + v], vu{} + both, weight);
        }
      } else {
        vf even, odd;
        if constexpr (std::is_same_v<Wt, bf16>) {
          vu weight;
          std::memcpy(&weight, from, sizeof weight);
          even = lower(weight), odd = upper(weight);
        } else {
          half all[2 * W], evens[W], odds[W];
          std::memcpy(all, from, sizeof all);
          for (int i = 0; i < W; i++) evens[i] = all[2 * i], odds[i] = all[2 * i + 1];
          even = load(evens), odd = load(odds);
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
          sums[m][2 * p + v] += splat(x[m][at]) * even;
          sums[m][2 * p + v] += splat(x[m][at + 1]) * odd;
        }
      }
    }
  }
}

// M tokens, of which the first is the block's `token`, by BESIDE panels.
template <class X, class Wt, int M, int BESIDE, class Finish>
void tile(const X* const* x, const Panels<Wt>& weight, int64_t token, int64_t panel,
          const Finish& finish) {
  const Wt* w[BESIDE];
  for (int p = 0; p < BESIDE; p++) w[p] = weight.at(panel + p);
  vf sums[M][2 * BESIDE] = {};
  const int64_t whole = weight.columns / Pair<Wt>::numbers * Pair<Wt>::numbers;
  for (int64_t at = 0; at < whole; at += Pair<Wt>::numbers) step<X, Wt, M, BESIDE>(x, at, w, sums);
  if (whole < weight.columns) {  // the last one, beside a zero
    X last[M][2];
    const X* from[M];
    for (int m = 0; m < M; m++) {
      last[m][0] = x[m][whole], last[m][1] = X{};
      from[m] = last[m] - whole;
    }
    step<X, Wt, M, BESIDE>(from, whole, w, sums);
  }
  // By way of memory: a sum that is found by a number would be kept there in the loop above, too
  alignas(4 * W) float made[M][2 * BESIDE][W];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * BESIDE; v++) store(made[m][v], sums[m][v]);
  for (int m = 0; m < M; m++)
    for (int p = 0; p < BESIDE; p++)
      finish(token + m, panel + p, load(made[m][2 * p]), load(made[m][2 * p + 1]));
}

// `count` tokens, at most MOST.
template <class X, class Wt, int M, class Finish>
void tokens(const X* const* x, const Panels<Wt>& weight, int64_t token, int64_t count,
            Range panels, const Finish& finish) {
  if constexpr (M > 1) {
    if (count < M)
      return tokens<X, Wt, M - 1>(x, weight, token, count, panels, finish);
  }
  // Few tokens take several panels side by side: enough sums to wait for none of them
  constexpr int BESIDE = M >= MOST / 2 + 1 ? 1 : M > MOST / 4 ? 2 : 4;
  int64_t at = panels.first;
  for (; at + BESIDE <= panels.end; at += BESIDE)
    tile<X, Wt, M, BESIDE>(x, weight, token, at, finish);
  for (; at < panels.end; at++) tile<X, Wt, M, 1>(x, weight, token, at, finish);
}

// Some tokens, BLOCK at the most, by some panels. row(token) is where a token's numbers are;
// finish(token, panel, first, second) gets what it makes of a panel, in two vectors.
template <class X, class Wt, class Row, class Finish>
void multiply(const Panels<Wt>& weight, Range block, Range panels, const Row& row,
              const Finish& finish) {
  // A panel stays in the nearest cache while the block's tokens pass, if they are many
  const int64_t beside = block.end - block.first > MOST / 2 ? 1 : GRAIN;
  for (int64_t panel = panels.first; panel < panels.end; panel += beside) {
    const Range some{panel, std::min(panels.end, panel + beside)};
    for (int64_t token = block.first; token < block.end; token += MOST) {
      const int64_t count = std::min<int64_t>(MOST, block.end - token);
      const X* from[MOST];
      for (int64_t m = 0; m < count; m++) from[m] = row(token + m);
      tokens<X, Wt, MOST>(from, weight, token, count, some, finish);
    }
  }
}

// The first n numbers of two vectors behind each other, n > 0, and a bias added to them.
template <class X>
inline void store_both(X* to, vf first, vf second, const X* bias, int64_t n) {
  const int low = int(std::min<int64_t>(W, n)), high = int(std::min<int64_t>(W, n - low));
  store(to, bias ? first + load(bias, low) : first, low);
  if (high > 0) store(to + W, bias ? second + load(bias + W, high) : second, high);
}

// A matrix whose rows become output columns.
template <class Wt>
struct Plain {
  const Wt* numbers;
  int64_t row_stride, column_stride;
  int64_t rows, columns;

  Wt at(int64_t row, int64_t column) const {
    if (row >= rows || column >= columns) return Wt{};
    return numbers[row * row_stride + column * column_stride];
  }
};

// One panel, of the W rows of `low` from `first` on and as many of `high`.
template <class Wt>
void pack(const Plain<Wt>& low, const Plain<Wt>& high, int64_t first_low, int64_t first_high,
          Wt* to) {
  constexpr int N = Pair<Wt>::numbers;
  for (int64_t at = 0; at < low.columns; at += N)
    for (int half = 0; half < 2; half++)
      for (int64_t row = 0; row < W; row++)
        for (int64_t i = at; i < at + N; i++)
          *to++ = half ? high.at(first_high + row, i) : low.at(first_low + row, i);
}
template <class Wt>
void pack(const Plain<Wt>& from, int64_t panel, Wt* to) {
  pack(from, from, panel * PANEL, panel * PANEL + W, to + panel * panel_size<Wt>(from.columns));
}

}  // namespace pds::panels
