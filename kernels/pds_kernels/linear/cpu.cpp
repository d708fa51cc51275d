// x · weightᵀ + bias on CPUs, of weights that are packed once.
//
// panels.h says how, and in which order each result is summed. A gated block's first product ends in
// its activation (finish.h).
#include "finish.h"

using namespace pds;
using namespace pds::panels;

namespace {

struct Arguments {
  const void* x;  // [T, columns], rows x_stride apart
  int64_t x_stride;
  const void* weight;  // packed
  const void* bias;    // of each row of the weight; null: none
  void* out;           // [T, made], rows out_stride apart
  int64_t out_stride;
  int64_t made;
  int64_t columns;
  int64_t activation;
};

template <class X, class Wt>
using Wider = std::conditional_t<sizeof(X) == 4 || sizeof(Wt) == 4, float, X>;

template <class X, class Wt>
void linear(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  const int64_t count = step->tokens;
  if (count == 0) return;
  using Out = Wider<X, Wt>;
  const Finish<Out> finish{static_cast<const Out*>(a.bias), a.made, a.activation,
                           static_cast<Out*>(a.out), a.out_stride, nullptr};
  const int64_t panels = finish.panels();
  const int64_t blocks = ceil_div(count, BLOCK);
  // Four panels at once, or so many that each thread gets some two pieces of a block
  const int64_t wanted = blocks >= 4 * crew->members ? panels : ceil_div(panels, 4 * crew->members);
  const int64_t grain = blocks > 1 ? std::max(GRAIN, ceil_div(wanted, GRAIN) * GRAIN) : GRAIN;
  const int64_t groups = ceil_div(panels, grain);
  const auto* x = static_cast<const X*>(a.x);
  const Panels<Wt> weight{static_cast<const Wt*>(a.weight), a.columns};
  for (int64_t task = crew->claim(); task < blocks * groups; task = crew->claim()) {
    const int64_t block = task / groups, group = task % groups;
    const int64_t first = block * BLOCK, last = std::min(count, first + BLOCK);
    const int64_t panel = group * grain, end = std::min(panels, panel + grain);
    const auto row = [&](int64_t token) { return x + token * a.x_stride; };
    multiply<X>(weight, {first, last}, {panel, end}, row, finish);
  }
}

struct Packing {
  const void* from;  // [rows, columns]
  int64_t stride;
  int64_t rows;
  int64_t columns;
  int64_t gated;  // the first half of the rows is gate's, the other up's
  void* to;
};

template <class Wt>
void pack_all(const void* arguments, const Crew* crew) {
  const auto& a = *static_cast<const Packing*>(arguments);
  const auto* from = static_cast<const Wt*>(a.from);
  auto* to = static_cast<Wt*>(a.to);
  const int64_t rows = a.gated ? a.rows / 2 : a.rows;
  const Plain<Wt> first{from, a.stride, 1, rows, a.columns};
  const Plain<Wt> second{from + rows * a.stride, a.stride, 1, rows, a.columns};
  const int64_t panels = ceil_div(rows, a.gated ? W : PANEL);
  for (int64_t panel = crew->claim(); panel < panels; panel = crew->claim())
    a.gated ? pack_gated(first, second, panel, to) : pack(first, panel, to);
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
  crew->share(step->tokens, [&](int64_t token) {
    const auto* from = static_cast<const Wt*>(a.packed) +
                       ids[token] / PANEL * panel_size<Wt>(a.columns) + ids[token] % PANEL * N;
    auto* to = static_cast<X*>(a.out) + token * a.out_stride;
    for (int64_t at = 0; at < a.columns; at++)
      to[at] = narrow<X>(widen(from[at / N * N * PANEL + at % N]));
  });
}

}  // namespace

// Numbers of a packed weight, of which so many columns are made.
PDS_OP int64_t pds_packed_size(int64_t item, int64_t made, int64_t columns, int64_t gated) {
  const int64_t size = item == 2 ? panel_size<bf16>(columns) : panel_size<float>(columns);
  return ceil_div(made, gated ? W : PANEL) * size;
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
DTYPES(bf16_f32, bf16, float)
