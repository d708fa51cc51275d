// Attention over paged keys and values on CPUs: pages are read where they lie.
//
// A tile is some tokens of one request by the heads that share a key, at most ROWS rows. Its
// context is cut at multiples of PIECE positions. Each piece is attended to by itself, block after
// block (block.h), with a running softmax (Dao et al., "FlashAttention", 2022), and joined to those
// before it. So a row's numbers depend on the positions that it sees, and on nothing else: neither
// on the other tokens of its chunk, nor on who computes a piece.
//
// A task is a tile by a head of keys. A task that is long beside the whole step is given out in
// pieces; who finishes the last one joins them.
#include <memory>
#include <type_traits>
#include <vector>

#include "block.h"

using namespace pds;

namespace {

constexpr int64_t ROWS = 12 * MOST;  // of a tile: a block is packed once for so many
constexpr int64_t PIECE = 512;       // positions; a multiple of KEYS
constexpr int64_t TASKS = 8;         // of a thread, at least, where they are alike

struct Tile {
  int64_t request;
  int64_t token;     // the first, among all of the step
  int64_t tokens;
  int64_t position;  // of the first
  int64_t low, high;  // the positions that its tokens see: low <= position < high
  int64_t partial;    // where the parts of its pieces begin, and its counters; -1: it is whole
  int64_t counter;

  int64_t first_piece() const { return low / PIECE; }
  int64_t pieces() const { return ceil_div(high, PIECE) - low / PIECE; }
};

struct Task {
  int64_t tile;
  int64_t piece;  // of a tile that is not whole
};

// What a step has to do, the same for all layers alike.
struct Work {
  std::vector<Tile> tiles;
  std::vector<Task> tasks;  // the longest first, each for every head of keys
  std::vector<float> partial;
  std::unique_ptr<std::atomic<int64_t>[]> counters;  // pieces that are done; zero between layers
  int64_t counted = 0;
};

struct Planning {
  Work* work;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
  int64_t window;  // 0: none
};

struct Arguments {
  Work* work;
  const void* q;  // [T, heads, dim]
  int64_t q_token, q_head;
  const void* keys;  // [pages, kv_heads, page_size, dim]
  int64_t key_page, key_head, key_place;
  const void* values;
  int64_t value_page, value_head, value_place;
  const float* sinks;  // [heads]; null: none
  void* out;           // [T, heads * dim]
  int64_t out_token;
  int64_t heads, kv_heads, dim, page_size;
  int64_t window;  // 0: none
  double scale, softcap;  // 0: none
};

struct Writing {
  const void* k;  // [T, kv_heads, dim]
  int64_t k_token, k_head;
  const void* v;
  int64_t v_token, v_head;
  void* keys;
  int64_t key_page, key_head, key_place;
  void* values;
  int64_t value_page, value_head, value_place;
  int64_t kv_heads, dim, page_size;
};

int64_t columns_of(int64_t dim) { return round_up(dim, 2 * W); }
int64_t parts_size(int64_t rows, int64_t columns) { return round_up(2 * rows, W) + rows * columns; }

Parts parts_at(float* at, int64_t rows, int64_t columns) {
  return {at, at + rows, at + parts_size(rows, columns) - rows * columns};
}

// ---- what there is to do -----------------------------------------------------------------------

int64_t length(const Tile& tile, int64_t group) {
  return (tile.tokens * group + ROWS / 8) * (tile.high - tile.low);  // packing costs some rows, too
}

void plan(const void* arguments, const Step* step, const Crew* crew) {
  if (crew->claim() > 0) return;
  const auto& a = *static_cast<const Planning*>(arguments);
  Work& work = *a.work;
  const int64_t group = a.heads / a.kv_heads, most = std::max<int64_t>(1, ROWS / group);
  work.tiles.clear(), work.tasks.clear();
  int64_t all = 0;
  for (int64_t request = 0; request < step->requests; request++) {
    const int64_t begin = step->cu_seqlens[request], end = step->cu_seqlens[request + 1];
    for (int64_t token = begin; token < end; token += most) {
      const int64_t tokens = std::min(most, end - token);
      const int64_t position = step->seq_lens[request] - end + token;
      const int64_t low = a.window ? std::max<int64_t>(0, position - a.window + 1) : 0;
      work.tiles.push_back({request, token, tokens, position, low, position + tokens, -1, 0});
      all += length(work.tiles.back(), group) * a.kv_heads;
    }
  }
  std::stable_sort(work.tiles.begin(), work.tiles.end(), [&](const Tile& one, const Tile& other) {
    return length(one, group) > length(other, group);
  });
  const int64_t longest = all / (crew->members * TASKS);
  int64_t partial = 0, counters = 0;
  for (size_t at = 0; at < work.tiles.size(); at++) {
    Tile& tile = work.tiles[at];
    const int64_t pieces = tile.pieces();
    if (pieces == 1 || crew->members == 1 || length(tile, group) <= longest) {
      work.tasks.push_back({int64_t(at), 0});
      continue;
    }
    tile.partial = partial, tile.counter = counters;
    partial += pieces * a.kv_heads * parts_size(tile.tokens * group, columns_of(a.dim));
    counters += a.kv_heads;
    for (int64_t piece = 0; piece < pieces; piece++) work.tasks.push_back({int64_t(at), piece});
  }
  if (int64_t(work.partial.size()) < partial + W) work.partial.resize(partial + W);
  if (work.counted < counters) {
    work.counters = std::make_unique<std::atomic<int64_t>[]>(counters);
    work.counted = counters;
  }
}

// ---- a task ------------------------------------------------------------------------------------

// A thread's own memory for one task.
template <class C>
struct Scratch {
  C* queries;  // [rows, steps of dim]
  C* keys;
  C* values;
  float* products;  // [MOST, KEYS]
  C* shares;        // [MOST, KEYS]
  float* totals;    // [rows, W]: shares by their place in a vector
  float* zeros;     // [dim], in place of what is not there
  Parts all, piece;
};

template <class C>
Scratch<C> scratch(int64_t rows, int64_t dim) {
  thread_local std::vector<float> memory;
  const int64_t steps = round_up(ceil_div(dim, PAIR<C>), W), columns = columns_of(dim);
  const int64_t parts = round_up(parts_size(rows, columns), 16);
  const int64_t sizes[] = {rows * steps, steps * KEYS, KEYS / PAIR<C> * columns, MOST * KEYS,
                           MOST * KEYS,  rows * W,     dim, parts, parts};
  int64_t size = 16;
  for (int64_t each : sizes) size += round_up(each, 16);
  if (int64_t(memory.size()) < size) memory.resize(size);
  auto* at = memory.data();
  at += -(reinterpret_cast<uintptr_t>(at) / 4) % 16;  // to a cache line
  float* part[std::size(sizes)];
  for (size_t i = 0; i < std::size(sizes); i++) part[i] = at, at += round_up(sizes[i], 16);
  std::fill_n(part[6], dim, 0.0f);
  return {reinterpret_cast<C*>(part[0]),     reinterpret_cast<C*>(part[1]),
          reinterpret_cast<C*>(part[2]),     part[3],
          reinterpret_cast<C*>(part[4]),     part[5], part[6],
          parts_at(part[7], rows, columns), parts_at(part[8], rows, columns)};
}

// One head's keys, or values, of one request.
template <class Kv>
struct Pages {
  const Kv* head;
  int64_t page_stride, place_stride;
  const int32_t* table;
  int64_t page_size;

  // Where those of the positions low <= position < high of a block lie; others are `zeros`.
  void locate(int64_t block, int64_t low, int64_t high, const Kv* zeros, const Kv** rows) const {
    low = std::max(low, block), high = std::min(high, block + KEYS);
    for (int64_t key = 0; key < KEYS; key++) rows[key] = zeros;
    for (int64_t at = low; at < high;) {
      const int64_t page = at / page_size, end = std::min(high, (page + 1) * page_size);
      const Kv* row = head + table[page] * page_stride + (at - page * page_size) * place_stride;
      for (; at < end; at++, row += place_stride) rows[at - block] = row;
    }
  }
};

// What a tile's rows take of one piece of what they see, into room.piece.
template <class C, class Kv>
void attend_piece(const Arguments& a, const Step* step, const Tile& tile, int64_t head,
                  int64_t piece, const Scratch<C>& room, const Parts& parts) {
  const int64_t group = a.heads / a.kv_heads, rows = tile.tokens * group;
  const int64_t steps = ceil_div(a.dim, PAIR<C>), columns = columns_of(a.dim);
  const int64_t width = round_up(steps, W) * PAIR<C>;
  const int32_t* table = step->page_table + tile.request * step->pages;
  const Pages<Kv> keys{static_cast<const Kv*>(a.keys) + head * a.key_head, a.key_page, a.key_place,
                       table, a.page_size};
  const Pages<Kv> values{static_cast<const Kv*>(a.values) + head * a.value_head, a.value_page,
                         a.value_place, table, a.page_size};
  const Scoring how = a.softcap ? Scoring{float(a.scale / a.softcap), float(a.softcap) * LOG2_E}
                                : Scoring{float(a.scale) * LOG2_E, 0};
  std::fill_n(parts.tops, rows, NONE);
  std::fill_n(parts.sums, rows * columns, 0.0f);
  std::fill_n(room.totals, rows * W, 0.0f);
  const int64_t low = std::max(tile.low, piece * PIECE);
  const int64_t high = std::min(tile.high, (piece + 1) * PIECE);
  const int64_t end = tile.partial < 0 ? tile.high : high;  // of what this thread reads
  const Kv* zeros = reinterpret_cast<const Kv*>(room.zeros);
  const Kv* found[2][2 * KEYS];  // of a block and the next one: keys, then values
  const auto find = [&](int64_t block) {
    const Kv** rows = found[block / KEYS % 2];
    keys.locate(block, tile.low, end, zeros, rows);
    values.locate(block, tile.low, end, zeros, rows + KEYS);
    return rows;
  };
  const Kv** rows_here = find(low / KEYS * KEYS);
  for (int64_t block = low / KEYS * KEYS; block < high; block += KEYS) {
    const Kv** next = find(block + KEYS);
    Ahead ahead(reinterpret_cast<const void* const*>(next), 2 * KEYS, a.dim * sizeof(Kv));
    pack_keys<C>(rows_here, a.dim, room.keys, ahead);
    pack_values<C>(rows_here + KEYS, a.dim, columns, room.values, ahead);
    rows_here = next;
    // Tokens that see none of the block: the first ones, and with a window the last ones
    const int64_t from = std::max<int64_t>(0, block - tile.position);
    const int64_t last = std::min(high, block + KEYS) - 1;
    const int64_t to =
        a.window ? std::min(tile.tokens, last + a.window - tile.position) : tile.tokens;
    const int64_t used = round_up(last + 1 - block, 2 * W);
    for (int64_t row = from * group; row < to * group; row += MOST) {
      const int64_t some = std::min<int64_t>(MOST, to * group - row);
      multiply<C, false>({room.queries + row * width, width, room.keys, KEYS * PAIR<C>, steps, used,
                          room.products, KEYS, &ahead},
                         some);
      for (int64_t i = 0; i < some; i++) {
        const int64_t own = tile.position + (row + i) / group;
        const int64_t first = a.window ? own - a.window + 1 - block : -block;
        const Row grown{parts.tops[row + i], room.totals + (row + i) * W,
                        parts.sums + (row + i) * columns, columns};
        weigh(room.products + i * KEYS, first, own + 1 - block, how, grown,
              room.shares + i * KEYS);
      }
      multiply<C, true>({room.shares, KEYS, room.values, columns * PAIR<C>, used / PAIR<C>, columns,
                         parts.sums + row * columns, columns, &ahead},
                        some);
    }
  }
  for (int64_t row = 0; row < rows; row++) parts.totals[row] = sum(load(room.totals + row * W));
}

template <class X, class C>
void take_queries(const Arguments& a, const Tile& tile, int64_t head, C* to) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t width = round_up(ceil_div(a.dim, PAIR<C>), W) * PAIR<C>;
  for (int64_t row = 0; row < tile.tokens * group; row++, to += width) {
    const X* from = static_cast<const X*>(a.q) + (tile.token + row / group) * a.q_token +
                    (head * group + row % group) * a.q_head;
    for (int64_t i = 0; i < a.dim; i++) to[i] = narrow<C>(widen(from[i]));
    for (int64_t i = a.dim; i < width; i++) to[i] = C{};
  }
}

template <class X>
void finish(const Arguments& a, const Tile& tile, int64_t head, const Parts& parts) {
  const int64_t group = a.heads / a.kv_heads, columns = columns_of(a.dim);
  for (int64_t row = 0; row < tile.tokens * group; row++) {
    const int64_t own = head * group + row % group;
    float total = parts.totals[row], kept = 1;
    if (a.sinks) {
      const float sink = a.sinks[own] * LOG2_E, top = std::max(parts.tops[row], sink);
      kept = power(parts.tops[row] - top);
      total = total * kept + power(sink - top);
    }
    const float factor = kept / total;
    const float* from = parts.sums + row * columns;
    X* to = static_cast<X*>(a.out) + (tile.token + row / group) * a.out_token + own * a.dim;
    for (int64_t at = 0; at < a.dim; at += W)
      store(to + at, load(from + at) * factor, int(std::min<int64_t>(W, a.dim - at)));
  }
}

template <class X, class C, class Kv>
void attend_task(const Arguments& a, const Step* step, const Task& task, int64_t head) {
  const Tile& tile = a.work->tiles[task.tile];
  const int64_t rows = tile.tokens * (a.heads / a.kv_heads), columns = columns_of(a.dim);
  const Scratch<C> room = scratch<C>(rows, a.dim);
  take_queries<X>(a, tile, head, room.queries);
  const int64_t first = tile.first_piece(), pieces = tile.pieces();
  if (tile.partial < 0) {
    attend_piece<C, Kv>(a, step, tile, head, first, room, room.all);
    for (int64_t piece = 1; piece < pieces; piece++) {
      attend_piece<C, Kv>(a, step, tile, head, first + piece, room, room.piece);
      join(room.all, room.piece, rows, columns);
    }
    return finish<X>(a, tile, head, room.all);
  }
  const int64_t size = parts_size(rows, columns);
  float* mine = a.work->partial.data() + tile.partial + head * pieces * size;
  attend_piece<C, Kv>(a, step, tile, head, first + task.piece, room,
                      parts_at(mine + task.piece * size, rows, columns));
  auto& done = a.work->counters[tile.counter + head];
  if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < pieces) return;
  done.store(0, std::memory_order_relaxed);
  const Parts all = parts_at(mine, rows, columns);
  for (int64_t piece = 1; piece < pieces; piece++)
    join(all, parts_at(mine + piece * size, rows, columns), rows, columns);
  finish<X>(a, tile, head, all);
}

template <class X, class Kv>
void attend(const void* arguments, const Step* step, const Crew* crew) {
#if defined(__AVX512BF16__)
  constexpr bool PAIRS = std::is_same_v<X, bf16> && std::is_same_v<Kv, bf16>;
#else
  constexpr bool PAIRS = false;
#endif
  using C = std::conditional_t<PAIRS, bf16, float>;
  const auto& a = *static_cast<const Arguments*>(arguments);
  const int64_t tasks = int64_t(a.work->tasks.size()) * a.kv_heads;
  for (int64_t task = crew->claim(); task <= tasks; task = crew->claim()) {
    if (task < tasks) {
      attend_task<X, C, Kv>(a, step, a.work->tasks[task / a.kv_heads], task % a.kv_heads);
      continue;
    }
    for (int64_t token = step->cu_seqlens[step->requests]; token < step->tokens; token++)
      std::fill_n(static_cast<X*>(a.out) + token * a.out_token, a.heads * a.dim, X{});
  }
}

// The keys and values of the step's tokens into their pages; those of padding go nowhere.
template <class X, class Kv>
void write(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Writing*>(arguments);
  const int64_t tokens = step->cu_seqlens[step->requests];
  const auto copy = [&](const X* from, Kv* to) {
    for (int64_t at = 0; at < a.dim; at++) to[at] = narrow<Kv>(widen(from[at]));
  };
  crew->share(tokens, [&](int64_t token) {
    const int64_t page = step->write_slots[token] / a.page_size;
    const int64_t place = step->write_slots[token] % a.page_size;
    for (int64_t head = 0; head < a.kv_heads; head++) {
      copy(static_cast<const X*>(a.k) + token * a.k_token + head * a.k_head,
           static_cast<Kv*>(a.keys) + page * a.key_page + head * a.key_head + place * a.key_place);
      copy(static_cast<const X*>(a.v) + token * a.v_token + head * a.v_head,
           static_cast<Kv*>(a.values) + page * a.value_page + head * a.value_head +
               place * a.value_place);
    }
  });
}

}  // namespace

PDS_OP void* pds_attention_work() { return new Work; }
PDS_OP void pds_attention_work_end(void* work) { delete static_cast<Work*>(work); }
PDS_OP void pds_attention_plan(const void* a, const Step* s, const Crew* c) { plan(a, s, c); }

// Named by the dtypes of queries and of pages
#define DTYPES(name, X, Kv)                                                     \
  PDS_OP void pds_attend_##name(const void* a, const Step* s, const Crew* c) {  \
    attend<X, Kv>(a, s, c);                                                     \
  }                                                                             \
  PDS_OP void pds_write_##name(const void* a, const Step* s, const Crew* c) {   \
    write<X, Kv>(a, s, c);                                                      \
  }
DTYPES(f32_f32, float, float)
DTYPES(f32_bf16, float, bf16)
DTYPES(f32_f16, float, half)
DTYPES(bf16_f32, bf16, float)
DTYPES(bf16_bf16, bf16, bf16)
DTYPES(bf16_f16, bf16, half)
