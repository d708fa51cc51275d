// The two tasks of latent attention: a piece of a single token's context, for all heads, and a head
// of some tokens of a chunk. cpu.cpp says which there are.
#pragma once

#include <memory>
#include <vector>

#include "block.h"
#include "panels.h"

namespace pds {

using panels::Panels;
using panels::Range;

constexpr int64_t PIECE = 512;    // positions; a multiple of KEYS
constexpr int64_t TOKENS = 1024;  // of a chunk: making keys costs as much as 400 tokens' attention

struct Single {
  int64_t request;
  int64_t token;
  int64_t context;
  int64_t piece;  // its first one's place in `partial`

  int64_t pieces() const { return ceil_div(context, PIECE); }
};

struct Chunk {
  int64_t request;
  int64_t token;  // the first, among all of the step
  int64_t tokens;
  int64_t position;  // of the first
};

struct Task {
  int64_t single;
  int64_t piece;
};

// What a step has to do, and what one operation leaves to the next one.
struct Work {
  std::vector<Single> singles;
  std::vector<Task> pieces;
  std::vector<Chunk> chunks;  // the longest first
  std::vector<float> queries, partial, summed;
  std::unique_ptr<std::atomic<int64_t>[]> done;  // pieces of each single token; zero between layers
  size_t counted = 0;
};

enum Stored : int64_t { F32, BF16, F16 };

struct Arguments {
  Work* work;
  const void* q;  // [T, heads, nope + rope]
  int64_t q_token, q_head;
  const void* latent;  // [T, rank + rope]
  int64_t latent_token;
  void* pages;  // [pages, page_size, rank + rope]
  int64_t page, place;
  int64_t stored;    // what pages are kept in
  const void* w_uk;  // packed; of each head [rank, nope] and then [nope, rank]
  const void* w_uv;  // packed; of each head [value, rank]
  void* out;         // [T, heads · value]
  int64_t out_token;
  int64_t heads, nope, rope, value, rank, page_size;
  double scale;

  int64_t width() const { return rank + rope; }
};

template <class Wt>
int64_t packed_size(int64_t rows, int64_t columns) {
  return ceil_div(rows, panels::PANEL) * panels::panel_size<Wt>(columns);
}
template <class Wt>
Panels<Wt> absorbing(const Arguments& a, int64_t head) {
  const int64_t one = packed_size<Wt>(a.rank, a.nope), other = packed_size<Wt>(a.nope, a.rank);
  return {static_cast<const Wt*>(a.w_uk) + head * (one + other), a.nope};
}
template <class Wt>
Panels<Wt> expanding(const Arguments& a, int64_t head) {
  return {absorbing<Wt>(a, head).numbers + packed_size<Wt>(a.rank, a.nope), a.rank};
}
template <class Wt>
Panels<Wt> valuing(const Arguments& a, int64_t head) {
  return {static_cast<const Wt*>(a.w_uv) + head * packed_size<Wt>(a.value, a.rank), a.rank};
}

// Queries, keys and shares are computed with in it.
#if defined(__AVX512BF16__)
template <class X>
using Computed = X;
#else
template <class X>
using Computed = float;
#endif

inline int64_t columns_of(int64_t dim) { return round_up(dim, 2 * W); }
template <class C>
int64_t width_of(int64_t dim) {  // of a row of queries
  return round_up(ceil_div(dim, PAIR<C>), W) * PAIR<C>;
}
inline int64_t parts_size(int64_t rows, int64_t columns) {
  return round_up(2 * rows, W) + rows * columns;
}
inline Parts parts_at(float* at, int64_t rows) {
  return {at, at + rows, at + round_up(2 * rows, W)};
}

// Memory of a thread's own: parts of it, one behind the other.
class Scratch {
 public:
  explicit Scratch(int64_t size) {
    thread_local std::vector<float> memory;
    if (int64_t(memory.size()) < size) memory.resize(size);
    at_ = memory.data();
  }
  template <class T>
  T* take(int64_t numbers) {
    T* taken = reinterpret_cast<T*>(at_);
    at_ += numbers;  // of four bytes each: enough for any T
    return taken;
  }

 private:
  float* at_;
};

template <class To, class From>
void copy(const From* from, int64_t count, To* to) {
  int64_t at = 0;
  for (; at + W <= count; at += W) store(to + at, load(from + at));
  for (; at < count; at++) to[at] = narrow<To>(widen(from[at]));
}

// The latents of `count` positions from `first` on, as T; zeros are behind them, up to KEYS.
template <class T, class Kv>
void gather(const Arguments& a, const int32_t* pages, int64_t first, int64_t count, T* to) {
  for (int64_t at = first; at < first + count; at++, to += a.width()) {
    const int64_t page = pages[at / a.page_size];
    copy(static_cast<const Kv*>(a.pages) + page * a.page + at % a.page_size * a.place, a.width(),
         to);
  }
  std::fill_n(to, (KEYS - count) * a.width(), T{});
}
template <class T>
void gather(const Arguments& a, const int32_t* pages, int64_t first, int64_t count, T* to) {
  if (a.stored == F32) return gather<T, float>(a, pages, first, count, to);
  if (a.stored == BF16) return gather<T, bf16>(a, pages, first, count, to);
  gather<T, half>(a, pages, first, count, to);
}

// A product's results as rows that lie `stride` apart, or where single tokens are.
template <class To>
struct Keep {
  To* to;
  int64_t stride;
  int64_t columns;
  const Single* singles;

  void operator()(int64_t row, int64_t panel, vf low, vf high) const {
    const int64_t at = panel * panels::PANEL;
    To* into = to + (singles ? singles[row].token : row) * stride + at;
    panels::store_both<To>(into, low, high, nullptr, columns - at);
  }
};

// ---- attention over packed blocks --------------------------------------------------------------

template <class C>
struct Room {
  C* queries;  // [rows, width of dim]
  int64_t rows, dim, columns;
  C *keys, *values;  // packed
  float* products;   // [MOST, KEYS]
  C* shares;         // [MOST, KEYS]
  float* totals;     // [rows, W]
  Parts parts;

  static int64_t size(int64_t rows, int64_t dim, int64_t columns) {
    return width_of<C>(dim) * KEYS + KEYS * columns + 2 * MOST * KEYS + rows * W;
  }
  Room(Scratch& scratch, C* queries, int64_t rows, int64_t dim, int64_t columns, Parts parts)
      : queries(queries), rows(rows), dim(dim), columns(columns), parts(parts) {
    keys = scratch.take<C>(width_of<C>(dim) * KEYS);
    values = scratch.take<C>(KEYS * columns);
    products = scratch.take<float>(MOST * KEYS);
    shares = scratch.take<C>(MOST * KEYS);
    totals = scratch.take<float>(rows * W);
    std::fill_n(parts.tops, rows, NONE);
    std::fill_n(parts.sums, rows * columns, 0.0f);
    std::fill_n(totals, rows * W, 0.0f);
  }

  // Rows from `row` on over a block of `count` keys; row r sees those before seen(r).
  template <class Seen>
  void attend(int64_t row, int64_t count, float scale, const Seen& seen) const {
    const int64_t width = width_of<C>(dim), used = round_up(count, 2 * W);
    Ahead none(nullptr, 0, 0);
    for (; row < rows; row += MOST) {
      const int64_t some = std::min<int64_t>(MOST, rows - row);
      multiply<C, false>({queries + row * width, width, keys, KEYS * PAIR<C>,
                          ceil_div(dim, PAIR<C>), used, products, KEYS, &none},
                         some);
      for (int64_t i = 0; i < some; i++) {
        const Row grown{parts.tops[row + i], totals + (row + i) * W,
                        parts.sums + (row + i) * columns, columns};
        weigh(products + i * KEYS, 0, seen(row + i), {scale * LOG2_E, 0}, grown,
              shares + i * KEYS);
      }
      multiply<C, true>({shares, KEYS, values, columns * PAIR<C>, used / PAIR<C>, columns,
                         parts.sums + row * columns, columns, &none},
                        some);
    }
  }
  void end() const {
    for (int64_t row = 0; row < rows; row++) parts.totals[row] = sum(load(totals + row * W));
  }
};

template <class X>
void divide(const Parts& parts, int64_t row, int64_t columns, int64_t count, X* to) {
  const float factor = 1 / parts.totals[row];
  for (int64_t at = 0; at < count; at += W)
    store(to + at, load(parts.sums + row * columns + at) * factor,
          int(std::min<int64_t>(W, count - at)));
}

template <class X, class C>
void attend_piece(const Arguments& a, const Step* step, const Task& task) {
  const Single& single = a.work->singles[task.single];
  const int64_t columns = columns_of(a.rank), size = parts_size(a.heads, columns);
  float* mine = a.work->partial.data() + single.piece * size;
  const int64_t latents = KEYS * a.width();
  Scratch scratch(latents + Room<C>::size(a.heads, a.width(), columns));
  C* rows = scratch.take<C>(latents);
  C* queries = reinterpret_cast<C*>(a.work->queries.data()) +
               task.single * a.heads * width_of<C>(a.width());
  const Room<C> room(scratch, queries, a.heads, a.width(), columns,
                     parts_at(mine + task.piece * size, a.heads));
  const int32_t* pages = step->page_table + single.request * step->pages;
  const int64_t end = std::min(single.context, (task.piece + 1) * PIECE);
  for (int64_t block = task.piece * PIECE; block < end; block += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, end - block);
    gather(a, pages, block, count, rows);
    const C* each[KEYS];
    for (int64_t i = 0; i < KEYS; i++) each[i] = rows + i * a.width();
    Ahead none(nullptr, 0, 0);  // gathering has read the latents one after another
    pack_keys<C>(each, a.width(), room.keys, none);
    pack_values<C>(each, a.rank, columns, room.values, none);
    room.attend(0, count, float(a.scale), [&](int64_t) { return count; });
  }
  room.end();
  auto& done = a.work->done[task.single];
  if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < single.pieces()) return;
  done.store(0, std::memory_order_relaxed);
  const Parts all = parts_at(mine, a.heads);
  for (int64_t piece = 1; piece < single.pieces(); piece++)
    join(all, parts_at(mine + piece * size, a.heads), a.heads, columns);
  X* summed = reinterpret_cast<X*>(a.work->summed.data()) + task.single * a.heads * a.rank;
  for (int64_t head = 0; head < a.heads; head++)
    divide(all, head, columns, a.rank, summed + head * a.rank);
}

template <class X, class Wt, class C>
void attend_chunk(const Arguments& a, const Step* step, const Chunk& chunk, int64_t head) {
  const int64_t dim = a.nope + a.rope, width = width_of<C>(dim), columns = columns_of(a.value);
  const int64_t latents = KEYS * a.width(), parts = parts_size(chunk.tokens, columns);
  Scratch scratch(latents + KEYS * (dim + a.value) + chunk.tokens * width + parts +
                  Room<C>::size(chunk.tokens, dim, columns));
  X* rows = scratch.take<X>(latents);
  C* keys = scratch.take<C>(KEYS * dim);
  C* values = scratch.take<C>(KEYS * a.value);
  C* queries = scratch.take<C>(chunk.tokens * width);
  for (int64_t token = 0; token < chunk.tokens; token++) {
    C* to = queries + token * width;
    copy(static_cast<const X*>(a.q) + (chunk.token + token) * a.q_token + head * a.q_head, dim, to);
    std::fill(to + dim, to + width, C{});
  }
  float* own = scratch.take<float>(parts);
  const Room<C> room(scratch, queries, chunk.tokens, dim, columns,
                     parts_at(own, chunk.tokens));
  const int32_t* pages = step->page_table + chunk.request * step->pages;
  const int64_t end = chunk.position + chunk.tokens;
  const auto row = [&](int64_t at) { return rows + at * a.width(); };
  for (int64_t block = 0; block < end; block += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, end - block);
    gather(a, pages, block, count, rows);
    panels::multiply<X>(expanding<Wt>(a, head), Range{0, KEYS},
                        Range{0, ceil_div(a.nope, panels::PANEL)}, row,
                        Keep<C>{keys, dim, a.nope, nullptr});
    panels::multiply<X>(valuing<Wt>(a, head), Range{0, KEYS},
                        Range{0, ceil_div(a.value, panels::PANEL)}, row,
                        Keep<C>{values, a.value, a.value, nullptr});
    const C *key[KEYS], *value[KEYS];
    for (int64_t i = 0; i < KEYS; i++) {
      copy(row(i) + a.rank, a.rope, keys + i * dim + a.nope);
      key[i] = keys + i * dim, value[i] = values + i * a.value;
    }
    Ahead none(nullptr, 0, 0);
    pack_keys<C>(key, dim, room.keys, none);
    pack_values<C>(value, a.value, columns, room.values, none);
    room.attend(std::max<int64_t>(0, block - chunk.position), count, float(a.scale),
                [&](int64_t at) { return chunk.position + at + 1 - block; });
  }
  room.end();
  for (int64_t token = 0; token < chunk.tokens; token++)
    divide(room.parts, token, columns, a.value,
           static_cast<X*>(a.out) + (chunk.token + token) * a.out_token + head * a.value);
}

}  // namespace pds
