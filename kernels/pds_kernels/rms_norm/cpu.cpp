// Normalisation on CPUs, with the sum of the residual stream before it: a token a piece of work.
#include <type_traits>

#include "op.h"
#include "vec.h"

using namespace pds;

namespace {

struct Arguments {
  const void* x;  // [T, hidden], rows x_stride apart
  int64_t x_stride;
  const void* residual;  // [T, hidden]; null: none
  int64_t residual_stride;
  const void* weight;  // [hidden]; null: nothing is normed
  void* total;         // [T, hidden]: x + residual; null: not asked for
  int64_t total_stride;
  void* normed;  // [T, hidden]; may be x
  int64_t normed_stride;
  int64_t hidden;
  double eps;
};

template <class X, class Wt>
void norm(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  crew->share(step->tokens, [&](int64_t token) {
    const X* x = static_cast<const X*>(a.x) + token * a.x_stride;
    if (a.residual) {
      const X* residual = static_cast<const X*>(a.residual) + token * a.residual_stride;
      X* total = static_cast<X*>(a.total) + token * a.total_stride;
      for (int64_t at = 0; at < a.hidden; at += W) {
        const int n = int(a.hidden - at < W ? a.hidden - at : W);
        store(total + at, load(x + at, n) + load(residual + at, n), n);
      }
      x = total;
    }
    if (!a.weight) return;
    vf squares[2] = {};
    for (int64_t at = 0; at < a.hidden; at += W) {
      const vf v = load(x + at, int(a.hidden - at < W ? a.hidden - at : W));
      squares[at / W % 2] += v * v;
    }
    const float mean = sum(squares[0] + squares[1]) / float(a.hidden);
    const vf scale = splat(1.0f / std::sqrt(mean + float(a.eps)));
    X* out = static_cast<X*>(a.normed) + token * a.normed_stride;
    for (int64_t at = 0; at < a.hidden; at += W) {
      const int n = int(a.hidden - at < W ? a.hidden - at : W);
      const vf weight = load(static_cast<const Wt*>(a.weight) + at, n);
      store(out + at, as<Wt>(load(x + at, n) * scale) * weight, n);
    }
  });
}

}  // namespace

// Named by the dtypes of the stream and of the weight
PDS_OP void pds_norm_f32_f32(const void* a, const Step* s, const Crew* c) { norm<float, float>(a, s, c); }
PDS_OP void pds_norm_bf16_bf16(const void* a, const Step* s, const Crew* c) { norm<bf16, bf16>(a, s, c); }
PDS_OP void pds_norm_bf16_f32(const void* a, const Step* s, const Crew* c) { norm<bf16, float>(a, s, c); }
