// The experts of a mixture on CPUs, of weights that are packed once (panels.h).
//
// A step's rows are sorted by expert in the mind alone: `order` says which choice of which token
// each row is. Tokens are read where they are and what becomes of them is written where it is
// summed, so that no row is moved. A piece of work is some panels of an expert, for some of its
// rows; an expert without rows has none.
#include <vector>

#include "finish.h"

using namespace pds;
using namespace pds::panels;

namespace {

struct Experts {
  const int64_t* counts;  // [experts]: how many rows each has
  const int64_t* order;   // [rows]: token · choices + choice; null: a token is a row
  int64_t choices;        // of a token
  int64_t experts;
  int64_t hidden;
  int64_t columns;
  int64_t activation;
  const void* x;  // [T, hidden], rows x_stride apart
  int64_t x_stride;
  const void* gate_up;       // packed
  const void* gate_up_bias;  // [experts, 2 · columns]; null: none
  void* gated;               // [rows, columns]
  const void* down;          // packed
  const void* down_bias;     // [experts, hidden]; null: none
  void* out;                 // [rows, hidden], each at its place in `order`
};

// Calls work(expert, rows, panels) for what is this thread's; returns how much there is of it.
template <class Work>
int64_t share(const Experts& e, int64_t panels, const Crew* crew, int64_t& task, const Work& work) {
  const int64_t groups = ceil_div(panels, GRAIN);
  int64_t before = 0, first = 0;  // pieces of work, and rows, of the experts so far
  task = crew->claim();
  for (int64_t expert = 0; expert < e.experts; expert++) {
    const int64_t end = first + e.counts[expert];
    const int64_t blocks = ceil_div(end - first, BLOCK), pieces = blocks * groups;
    for (; task < before + pieces; task = crew->claim()) {
      const int64_t begin = first + (task - before) % blocks * BLOCK;
      const int64_t panel = (task - before) / blocks * GRAIN;
      work(expert, Range{begin, std::min(end, begin + BLOCK)},
           Range{panel, std::min(panels, panel + GRAIN)});
    }
    before += pieces, first = end;
  }
  return before;
}

template <class X, class Wt>
void gate_up(const void* arguments, const Step*, const Crew* crew) {
  const auto& e = *static_cast<const Experts*>(arguments);
  const int64_t panels = ceil_div(e.columns, W);
  int64_t task;
  share(e, panels, crew, task, [&](int64_t expert, Range rows, Range some) {
    const Panels<Wt> all{static_cast<const Wt*>(e.gate_up), e.hidden};
    const auto* bias = static_cast<const X*>(e.gate_up_bias);
    const Finish<X> finish{bias ? bias + expert * 2 * e.columns : bias, e.columns, e.activation,
                           static_cast<X*>(e.gated), e.columns, nullptr};
    const auto row = [&](int64_t at) {
      return static_cast<const X*>(e.x) + (e.order ? e.order[at] / e.choices : at) * e.x_stride;
    };
    multiply<X>(Panels<Wt>{all.at(expert * panels), e.hidden}, rows, some, row, finish);
  });
}

template <class X, class Wt>
void down(const void* arguments, const Step* step, const Crew* crew) {
  const auto& e = *static_cast<const Experts*>(arguments);
  const int64_t panels = ceil_div(e.hidden, PANEL);
  auto* out = static_cast<X*>(e.out);
  int64_t task;
  const int64_t pieces = share(e, panels, crew, task, [&](int64_t expert, Range rows, Range some) {
    const Panels<Wt> all{static_cast<const Wt*>(e.down), e.columns};
    const auto* bias = static_cast<const X*>(e.down_bias);
    const Finish<X> finish{bias ? bias + expert * e.hidden : bias, e.hidden, NONE, out, e.hidden,
                           e.order};
    const auto row = [&](int64_t at) { return static_cast<const X*>(e.gated) + at * e.columns; };
    multiply<X>(Panels<Wt>{all.at(expert * panels), e.columns}, rows, some, row, finish);
  });
  // Rows of no expert: one after another
  int64_t held = 0;
  for (int64_t expert = 0; expert < e.experts; expert++) held += e.counts[expert];
  for (; task - pieces < step->tokens * e.choices - held; task = crew->claim()) {
    const int64_t row = held + task - pieces;
    std::fill_n(out + (e.order ? e.order[row] : row) * e.hidden, e.hidden, X{});
  }
}

struct Sorting {
  const int64_t* ids;  // [T, choices]
  int64_t choices;
  int64_t experts;  // an id of so many is of an expert that is elsewhere: its rows come last
  int64_t* counts;  // [experts]
  int64_t* order;   // [T · choices]
};

struct Summing {
  const void* rows;  // [T, choices, hidden]
  int64_t choices;
  int64_t hidden;
  const float* weights;  // [T, choices]
  const void* shared;    // [T, hidden]: added to a token's sum; null: nothing is
  const void* counted;   // [T]: the sigmoid of it is what `shared` counts; null: all of it
  void* out;             // [T, hidden], rows out_stride apart
  int64_t out_stride;
};

// In float32, in the order of a token's choices.
template <class X>
void sum_choices(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Summing*>(arguments);
  crew->share(step->tokens, [&](int64_t token) {
    const X* rows = static_cast<const X*>(a.rows) + token * a.choices * a.hidden;
    const float* weights = a.weights + token * a.choices;
    const X* shared = static_cast<const X*>(a.shared);
    X* out = static_cast<X*>(a.out) + token * a.out_stride;
    float counts = 1;
    if (a.counted)
      counts = 1.0f / (1.0f + std::exp(-widen(static_cast<const X*>(a.counted)[token])));
    for (int64_t at = 0; at < a.hidden; at += W) {
      const int n = int(std::min<int64_t>(W, a.hidden - at));
      vf total{};
      for (int64_t choice = 0; choice < a.choices; choice++)
        total += load(rows + choice * a.hidden + at, n) * weights[choice];
      if (shared) total += load(shared + token * a.hidden + at, n) * counts;
      store(out + at, total, n);
    }
  });
}

struct Packing {
  const void* gate_up;  // [2 · columns, hidden], gate's rows first
  const void* down;     // [hidden, columns]
  int64_t hidden;
  int64_t columns;
  void* packed_gate_up;  // of this expert
  void* packed_down;
};

template <class Wt>
void pack_expert(const void* arguments, const Crew* crew) {
  const auto& a = *static_cast<const Packing*>(arguments);
  const auto* both = static_cast<const Wt*>(a.gate_up);
  const Plain<Wt> gate{both, a.hidden, 1, a.columns, a.hidden};
  const Plain<Wt> up{both + a.columns * a.hidden, a.hidden, 1, a.columns, a.hidden};
  const Plain<Wt> last{static_cast<const Wt*>(a.down), a.columns, 1, a.hidden, a.columns};
  const int64_t gates = ceil_div(a.columns, W), all = gates + ceil_div(a.hidden, PANEL);
  for (int64_t panel = crew->claim(); panel < all; panel = crew->claim()) {
    if (panel >= gates) {
      pack(last, panel - gates, static_cast<Wt*>(a.packed_down));
      continue;
    }
    pack_gated(gate, up, panel, static_cast<Wt*>(a.packed_gate_up));
  }
}

}  // namespace

// By counting; rows of an expert are in the order of their tokens.
PDS_OP void pds_sort_choices(const void* arguments, const Step* step, const Crew* crew) {
  if (crew->claim() > 0) return;
  const auto& a = *static_cast<const Sorting*>(arguments);
  const int64_t rows = step->tokens * a.choices;
  static thread_local std::vector<int64_t> next;
  next.assign(a.experts + 2, 0);
  for (int64_t row = 0; row < rows; row++) next[a.ids[row] + 1]++;
  for (int64_t expert = 0; expert < a.experts; expert++) {
    a.counts[expert] = next[expert + 1];
    next[expert + 1] += next[expert];
  }
  for (int64_t row = 0; row < rows; row++) a.order[next[a.ids[row]]++] = row;
}

// Numbers of an expert's packed gate_up, and of its down.
PDS_OP int64_t pds_gate_up_size(int64_t item, int64_t hidden, int64_t columns) {
  return ceil_div(columns, W) * (item == 2 ? panel_size<bf16>(hidden) : panel_size<float>(hidden));
}
PDS_OP int64_t pds_down_size(int64_t item, int64_t hidden, int64_t columns) {
  const int64_t size = item == 2 ? panel_size<bf16>(columns) : panel_size<float>(columns);
  return ceil_div(hidden, PANEL) * size;
}
PDS_OP void pds_pack_2(const void* a, const Step*, const Crew* c) { pack_expert<bf16>(a, c); }
PDS_OP void pds_pack_4(const void* a, const Step*, const Crew* c) { pack_expert<float>(a, c); }
PDS_OP void pds_sum_f32(const void* a, const Step* s, const Crew* c) {
  sum_choices<float>(a, s, c);
}
PDS_OP void pds_sum_bf16(const void* a, const Step* s, const Crew* c) {
  sum_choices<bf16>(a, s, c);
}

// Named by the dtypes of rows and of weights
#define DTYPES(name, X, Wt)                                                     \
  PDS_OP void pds_gate_up_##name(const void* a, const Step* s, const Crew* c) { \
    gate_up<X, Wt>(a, s, c);                                                    \
  }                                                                             \
  PDS_OP void pds_down_##name(const void* a, const Step* s, const Crew* c) {    \
    down<X, Wt>(a, s, c);                                                       \
  }
DTYPES(f32_f32, float, float)
DTYPES(f32_bf16, float, bf16)
DTYPES(f32_f16, float, half)
DTYPES(bf16_bf16, bf16, bf16)
