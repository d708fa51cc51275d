// What becomes of the sums of a product by packed weights (panels.h) before they are written.
#pragma once

#include "panels.h"

namespace pds::panels {

// Of the gated block, by their place in activation/plan.py's Activation. Float32 is kept to the end
// and rounded once.
enum Activation : int64_t { NONE = -1, SILU, GELU_TANH, CLAMPED };
constexpr float ALPHA = 1.702f, LIMIT = 7.0f;  // plan.py's

inline vf activated(int64_t activation, vf gate, vf up) {
  if (activation == SILU) return gate * sigmoid(gate) * up;
  if (activation == GELU_TANH) {  // (1 + tanh(x)) / 2 = sigmoid(2x)
    const vf inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    return gate * sigmoid(2.0f * inner) * up;
  }
  const vf most = splat(LIMIT), least = splat(-LIMIT);  // comparisons with NaN are false: NaN stays
  gate = gate > most ? most : gate;
  up = up > most ? most : up < least ? least : up;
  return (up + 1.0f) * (gate * sigmoid(gate * ALPHA));
}

// A panel of a gated block has W columns of gate and the same of up: only what becomes of them is
// written. One type for both kinds of products, as for each type all tiles are compiled.
template <class X>
struct Finish {
  const X* bias;     // [columns], or gate's and up's behind each other; null: none
  int64_t columns;   // of the result
  int64_t activation;
  X* out;
  int64_t stride;    // of rows of out
  const int64_t* order;  // which row of out is whose; null: as they come

  int64_t panels() const { return ceil_div(columns, activation == NONE ? PANEL : W); }

  void operator()(int64_t row, int64_t panel, vf low, vf high) const {
    X* to = out + (order ? order[row] : row) * stride;
    if (activation == NONE) {
      const int64_t at = panel * PANEL;
      return store_both(to + at, low, high, bias ? bias + at : bias, columns - at);
    }
    const int64_t at = panel * W;
    const int n = int(std::min<int64_t>(W, columns - at));
    if (bias) low += load(bias + at, n), high += load(bias + columns + at, n);
    store(to + at, activated(activation, low, high), n);
  }
};

// The panels of a weight of gate and of up, each [columns, of the input], behind one another.
template <class Wt>
void pack_gated(const Plain<Wt>& gate, const Plain<Wt>& up, int64_t panel, Wt* to) {
  pack(gate, up, panel * W, panel * W, to + panel * panel_size<Wt>(gate.columns));
}

}  // namespace pds::panels
