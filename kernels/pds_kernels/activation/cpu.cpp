// The gated block's activation on CPUs. Float32 is kept to the end and rounded once.
#include "op.h"
#include "vec.h"

using namespace pds;

namespace {

constexpr float ALPHA = 1.702f, LIMIT = 7.0f;  // plan.py's

struct Arguments {
  const void* gate_up;  // [T, 2 columns], rows stride apart
  int64_t stride;
  void* out;  // [T, columns]
  int64_t out_stride;
  int64_t columns;
};

struct Silu {
  static vf of(vf gate, vf up) { return gate * sigmoid(gate) * up; }
};
struct GeluTanh {
  static vf of(vf gate, vf up) {
    const vf inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return gate * sigmoid(2.0f * inner) * up;  // (1 + tanh z) / 2
  }
};
struct Clamped {
  static vf of(vf gate, vf up) {
    const vf most = splat(LIMIT);  // comparisons with NaN are false, so NaN stays
    gate = gate > most ? most : gate;
    up = up > most ? most : up < -most ? -most : up;
    return (up + 1.0f) * (gate * sigmoid(gate * ALPHA));
  }
};

constexpr int64_t GRAIN = 512;  // columns of a token that are one piece of work

template <class X, class Activation>
void gated(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  const int64_t pieces = ceil_div(a.columns, GRAIN);
  crew->share(step->tokens * pieces, [&](int64_t at) {
    const int64_t token = at / pieces, first = at % pieces * GRAIN;
    const int64_t last = first + GRAIN < a.columns ? first + GRAIN : a.columns;
    const X* gate = static_cast<const X*>(a.gate_up) + token * a.stride;
    const X* up = gate + a.columns;
    X* out = static_cast<X*>(a.out) + token * a.out_stride;
    for (int64_t i = first; i < last; i += W) {
      const int n = int(last - i < W ? last - i : W);
      store(out + i, Activation::of(load(gate + i, n), load(up + i, n)), n);
    }
  });
}

}  // namespace

// Named by the activation and the dtype
#define ACTIVATION(name, Activation)                                                   \
  PDS_OP void pds_##name##_f32(const void* a, const Step* s, const Crew* c) {          \
    gated<float, Activation>(a, s, c);                                                 \
  }                                                                                    \
  PDS_OP void pds_##name##_bf16(const void* a, const Step* s, const Crew* c) {         \
    gated<bf16, Activation>(a, s, c);                                                  \
  }
ACTIVATION(silu, Silu)
ACTIVATION(gelu_tanh, GeluTanh)
ACTIVATION(clamped, Clamped)
