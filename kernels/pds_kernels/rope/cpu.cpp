// Rotary positions on CPUs, with the norms of heads before them and the writing of pages behind.
#include "op.h"
#include "vec.h"

using namespace pds;

namespace {

struct Arguments {
  const void* qkv;  // [T, (heads + 2 kv_heads) * dim], rows stride apart
  int64_t stride;
  const float* rows;  // [T, rotated]: cosines, then sines; or a table of all positions
  int64_t indexed;    // whether `rows` is the table, and the step's positions say which
  const void* norm;   // [heads + kv_heads, dim]; null: none
  double eps;
  void* queries;  // [T, heads, dim]
  void* keys;     // [pages, kv_heads, page_size, dim]
  void* values;
  int64_t page_stride;
  int64_t head_stride;
  int64_t place_stride;
  int64_t page_size;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
  int64_t rotated;
};

inline int least(int64_t left) { return int(left < W ? left : W); }

// x / rms(x) * weight, from `x` to `to`: rounded as rms_norm/reference.py says.
template <class X, class Wt>
inline void norm(const X* x, const Wt* weight, int64_t dim, float eps, X* to) {
  vf squares{};
  for (int64_t at = 0; at < dim; at += W) {
    const vf v = load(x + at, least(dim - at));
    squares += v * v;
  }
  const vf scale = splat(1.0f / std::sqrt(sum(squares) / float(dim) + eps));
  for (int64_t at = 0; at < dim; at += W) {
    const int n = least(dim - at);
    store(to + at, as<Wt>(load(x + at, n) * scale) * load(weight + at, n), n);
  }
}

// The first `rotated` of a head's numbers turned, the others as they are, rounded to X and then to
// Out; `to` may be `x` where both are of one type.
template <class X, class Out>
inline void turn(const X* x, const float* row, int64_t dim, int64_t rotated, Out* to) {
  const int64_t pairs = rotated / 2;
  for (int64_t at = 0; at < pairs; at += W) {
    const int n = least(pairs - at);
    const vf first = load(x + at, n), second = load(x + pairs + at, n);
    const vf cosine = load(row + at, n), sine = load(row + pairs + at, n);
    store(to + at, as<X>(first * cosine - second * sine), n);
    store(to + pairs + at, as<X>(second * cosine + first * sine), n);
  }
  for (int64_t at = rotated; at < dim; at += W) {
    const int n = least(dim - at);
    store(to + at, load(x + at, n), n);
  }
}

template <class X, class Wt, class Kv>
void rotate_and_write(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  constexpr int64_t MOST = 1024;
  X normed[MOST];
  crew->share(step->tokens, [&](int64_t token) {
    const X* from = static_cast<const X*>(a.qkv) + token * a.stride;
    const float* row = a.rows + (a.indexed ? step->positions[token] : token) * a.rotated;
    const int64_t slot = step->write_slots[token];
    const int64_t place = slot / a.page_size * a.page_stride + slot % a.page_size * a.place_stride;
    for (int64_t head = 0; head < a.heads + a.kv_heads; head++, from += a.dim) {
      const X* x = from;
      if (a.norm) {
        norm(x, static_cast<const Wt*>(a.norm) + head * a.dim, a.dim, float(a.eps), normed);
        x = normed;
      }
      if (head < a.heads) {
        X* queries = static_cast<X*>(a.queries) + (token * a.heads + head) * a.dim;
        turn(x, row, a.dim, a.rotated, queries);
      } else {
        Kv* keys = static_cast<Kv*>(a.keys) + place + (head - a.heads) * a.head_stride;
        turn(x, row, a.dim, a.rotated, keys);
      }
    }
    for (int64_t head = 0; head < a.kv_heads; head++, from += a.dim)
      turn(from, row, a.dim, 0, static_cast<Kv*>(a.values) + place + head * a.head_stride);
  });
}

struct Turning {
  void* x;  // [T, heads, ...], in place
  int64_t stride;
  int64_t heads;
  int64_t head_stride;
  const float* table;  // [positions, rotated]
  int64_t rotated;
};

template <class X>
void rotate(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Turning*>(arguments);
  crew->share(step->tokens, [&](int64_t token) {
    const float* row = a.table + step->positions[token] * a.rotated;
    X* x = static_cast<X*>(a.x) + token * a.stride;
    for (int64_t head = 0; head < a.heads; head++, x += a.head_stride)
      turn(x, row, a.rotated, a.rotated, x);
  });
}

}  // namespace

// Named by the dtypes of the projection, of norms and of pages
#define ROTATE(name, X, Wt, Kv)                                                          \
  PDS_OP void pds_rotate_and_write_##name(const void* a, const Step* s, const Crew* c) { \
    rotate_and_write<X, Wt, Kv>(a, s, c);                                                \
  }
ROTATE(f32_f32_f32, float, float, float)
ROTATE(f32_f32_bf16, float, float, bf16)
ROTATE(f32_f32_f16, float, float, half)
ROTATE(bf16_bf16_f32, bf16, bf16, float)
ROTATE(bf16_bf16_bf16, bf16, bf16, bf16)
ROTATE(bf16_bf16_f16, bf16, bf16, half)
ROTATE(bf16_f32_f32, bf16, float, float)
ROTATE(bf16_f32_bf16, bf16, float, bf16)
ROTATE(bf16_f32_f16, bf16, float, half)
PDS_OP void pds_rotate_f32(const void* a, const Step* s, const Crew* c) { rotate<float>(a, s, c); }
PDS_OP void pds_rotate_bf16(const void* a, const Step* s, const Crew* c) { rotate<bf16>(a, s, c); }
