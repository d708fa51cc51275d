// x · weightᵀ + bias on CPUs, of weights that are packed once.
//
// A packed weight is a row of panels, each of PANEL output columns. A panel holds, for two input
// columns after the other, both numbers of each output column side by side (for float: one), as
// vdpbf16ps multiplies them. So a panel is read from its begin to its end, once for some tokens.
//
// Each result is one sum in the order of the input columns, whatever else is computed beside it: a
// token's numbers do not depend on the batch.
#include <algorithm>
#include <type_traits>

#include "op.h"
#include "vec.h"

using namespace pds;

namespace {

constexpr int PANEL = 2 * W;
#if defined(__AVX512F__)
constexpr int REGISTERS = 24;  // of 32: the rest hold weights and tokens
#else
constexpr int REGISTERS = 12;
#endif
constexpr int MOST = REGISTERS / 2;  // tokens that are multiplied by a panel at once
constexpr int64_t BLOCK = 4 * MOST;  // tokens whose part of x stays in a cache of the second level
constexpr int AHEAD = 1024;          // bytes

struct Arguments {
  const void* x;  // [T, columns], rows x_stride apart
  int64_t x_stride;
  const void* weight;  // packed
  const void* bias;    // [rows]; null: none
  void* out;           // [T, rows], rows out_stride apart
  int64_t out_stride;
  int64_t rows;
  int64_t columns;
};

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

// Adds to sums[m][v] what tokens m get of two input columns (or one) by PANELS panels.
template <class X, class Wt, int M, int PANELS>
inline void step(const X* const* x, int64_t at, const Wt* const* w, vf (&sums)[M][2 * PANELS]) {
#pragma GCC unroll 8
  for (int p = 0; p < PANELS; p++) {
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

template <class X, class Wt, int M, int PANELS>
void tile(const Arguments& a, const X* const* x, int64_t panel, X* const* out) {
  const int64_t size = panel_size<Wt>(a.columns);
  const Wt* w[PANELS];
  for (int p = 0; p < PANELS; p++) w[p] = static_cast<const Wt*>(a.weight) + (panel + p) * size;
  vf sums[M][2 * PANELS] = {};
  const int64_t whole = a.columns / Pair<Wt>::numbers * Pair<Wt>::numbers;
  for (int64_t at = 0; at < whole; at += Pair<Wt>::numbers) step<X, Wt, M, PANELS>(x, at, w, sums);
  if (whole < a.columns) {  // the last one, beside a zero
    X last[M][2];
    const X* from[M];
    for (int m = 0; m < M; m++) {
      last[m][0] = x[m][whole], last[m][1] = X{};
      from[m] = last[m] - whole;
    }
    step<X, Wt, M, PANELS>(from, whole, w, sums);
  }
  for (int p = 0; p < PANELS; p++) {
    for (int v = 0; v < 2; v++) {
      const int64_t row = (panel + p) * PANEL + v * W;
      const int n = int(std::min<int64_t>(W, a.rows - row));
      if (n <= 0) return;
      vf bias = a.bias ? load(static_cast<const X*>(a.bias) + row, n) : vf{};
      for (int m = 0; m < M; m++) {
        vf total = sums[m][2 * p + v];
        if (a.bias) total += bias;
        store(out[m] + row, total, n);
      }
    }
  }
}

// `count` tokens, at most MOST, by `panels` panels.
template <class X, class Wt, int M>
void tokens(const Arguments& a, const X* const* x, int64_t count, int64_t panel, int64_t panels,
            X* const* out) {
  if constexpr (M > 1) {
    if (count < M) return tokens<X, Wt, M - 1>(a, x, count, panel, panels, out);
  }
  // Few tokens take several panels side by side: enough sums to wait for none of them
  constexpr int BESIDE = M >= MOST / 2 + 1 ? 1 : M > MOST / 4 ? 2 : 4;
  for (; panels >= BESIDE; panels -= BESIDE, panel += BESIDE)
    tile<X, Wt, M, BESIDE>(a, x, panel, out);
  for (; panels > 0; panels--, panel++) tile<X, Wt, M, 1>(a, x, panel, out);
}

template <class X, class Wt>
void linear(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  const int64_t count = step->tokens;
  if (count == 0) return;
  const int64_t panels = ceil_div(a.rows, PANEL);
  const int64_t blocks = ceil_div(count, BLOCK);
  // Four panels at once, or so many that each thread gets some two pieces of a block
  const int64_t wanted = blocks >= 4 * crew->members ? panels : ceil_div(panels, 4 * crew->members);
  const int64_t grain = blocks > 1 ? std::max<int64_t>(4, ceil_div(wanted, 4) * 4) : 4;
  const int64_t groups = ceil_div(panels, grain);
  const auto* x = static_cast<const X*>(a.x);
  auto* out = static_cast<X*>(a.out);
  for (int64_t task = crew->claim(); task < blocks * groups; task = crew->claim()) {
    const int64_t block = task / groups, group = task % groups;
    const int64_t first = block * BLOCK, last = std::min(count, first + BLOCK);
    const int64_t panel = group * grain, end = std::min(panels, panel + grain);
    // A panel stays in the nearest cache while the block's tokens pass, if they are many
    const int64_t beside = last - first > MOST / 2 ? 1 : 4;
    for (int64_t each = panel; each < end; each += beside) {
      const int64_t some = std::min(beside, end - each);
      for (int64_t token = first; token < last; token += MOST) {
        const int64_t n = std::min<int64_t>(MOST, last - token);
        const X* from[MOST];
        X* to[MOST];
        for (int64_t m = 0; m < n; m++) {
          from[m] = x + (token + m) * a.x_stride;
          to[m] = out + (token + m) * a.out_stride;
        }
        tokens<X, Wt, MOST>(a, from, n, each, some, to);
      }
    }
  }
}

template <class Wt>
void pack(const Wt* from, int64_t stride, int64_t rows, int64_t columns, Wt* to, int64_t panel) {
  constexpr int N = Pair<Wt>::numbers;
  Wt* into = to + panel * panel_size<Wt>(columns);
  for (int64_t at = 0; at < columns; at += N)
    for (int64_t row = panel * PANEL; row < (panel + 1) * PANEL; row++)
      for (int64_t i = at; i < at + N; i++)
        *into++ = row < rows && i < columns ? from[row * stride + i] : Wt{};
}

struct Packing {
  const void* from;  // [rows, columns]
  int64_t stride;
  int64_t rows;
  int64_t columns;
  void* to;
};

template <class Wt>
void pack_all(const void* arguments, const Crew* crew) {
  const auto& a = *static_cast<const Packing*>(arguments);
  const int64_t panels = ceil_div(a.rows, PANEL);
  for (int64_t panel = crew->claim(); panel < panels; panel = crew->claim())
    pack(static_cast<const Wt*>(a.from), a.stride, a.rows, a.columns, static_cast<Wt*>(a.to),
         panel);
}

struct Unpacking {
  const void* packed;
  const int64_t* ids;  // [T]; null: the step's
  int64_t columns;
  void* out;  // [T, columns]
  int64_t out_stride;
};

template <class X, class Wt>
void unpack(const void* arguments, const Step* step, const Crew* crew) {
  constexpr int N = Pair<Wt>::numbers;
  const auto& a = *static_cast<const Unpacking*>(arguments);
  const int64_t* ids = a.ids ? a.ids : step->ids;
  for (int64_t token = crew->claim(); token < step->tokens; token = crew->claim()) {
    const auto* from = static_cast<const Wt*>(a.packed) +
                       ids[token] / PANEL * panel_size<Wt>(a.columns) + ids[token] % PANEL * N;
    auto* to = static_cast<X*>(a.out) + token * a.out_stride;
    for (int64_t at = 0; at < a.columns; at++)
      to[at] = narrow<X>(widen(from[at / N * N * PANEL + at % N]));
  }
}

}  // namespace

PDS_OP int64_t pds_packed_size(int64_t item, int64_t rows, int64_t columns) {
  return ceil_div(rows, PANEL) * (item == 2 ? panel_size<bf16>(columns) : panel_size<float>(columns));
}
PDS_OP void pds_pack_2(const void* a, const Step*, const Crew* c) { pack_all<bf16>(a, c); }
PDS_OP void pds_pack_4(const void* a, const Step*, const Crew* c) { pack_all<float>(a, c); }

// Named by the dtypes of tokens and of weights
#define DTYPES(name, X, Wt)                                                  \
  PDS_OP void pds_linear_##name(const void* a, const Step* s, const Crew* c) { \
    linear<X, Wt>(a, s, c);                                                  \
  }                                                                          \
  PDS_OP void pds_unpack_##name(const void* a, const Step* s, const Crew* c) { \
    unpack<X, Wt>(a, s, c);                                                  \
  }
DTYPES(f32_f32, float, float)
DTYPES(f32_bf16, float, bf16)
DTYPES(f32_f16, float, half)
DTYPES(bf16_bf16, bf16, bf16)
