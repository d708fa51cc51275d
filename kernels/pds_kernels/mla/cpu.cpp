// Multi-head latent attention on CPUs: latents are read where they lie in pages.
//
// Single tokens absorb: w_uk is taken into their queries, all heads attend to the same latents,
// which are keys and values, and w_uv is taken of the sums. A latent is read once for all heads.
// Contexts are cut at multiples of PIECE positions; who finishes a token's last piece joins them.
//
// Chunks expand: for each head keys and values are made of a block of latents, for up to TOKENS
// tokens at once, which attend to them with a running softmax.
//
// Either way a token's numbers depend on the positions that it sees, and on nothing else.
#include "tasks.h"

using namespace pds;

namespace {

// The latents of the step's tokens into their pages; those of padding go nowhere.
template <class X>
void write(const Arguments& a, const Step* step, const Crew* crew) {
  const int64_t tokens = step->cu_seqlens[step->requests];
  crew->share(tokens, [&](int64_t token) {
    const int64_t slot = step->write_slots[token];
    const int64_t at = slot / a.page_size * a.page + slot % a.page_size * a.place;
    const X* from = static_cast<const X*>(a.latent) + token * a.latent_token;
    if (a.stored == F32) copy(from, a.width(), static_cast<float*>(a.pages) + at);
    if (a.stored == BF16) copy(from, a.width(), static_cast<bf16*>(a.pages) + at);
    if (a.stored == F16) copy(from, a.width(), static_cast<half*>(a.pages) + at);
  });
}

// Calls work(head, tokens, panels) for a product of each head and all single tokens.
template <class Each>
void by_heads(const Arguments& a, int64_t rows, const Crew* crew, const Each& work) {
  const int64_t all = ceil_div(rows, panels::PANEL), groups = ceil_div(all, panels::GRAIN);
  const int64_t singles = a.work->singles.size(), blocks = ceil_div(singles, panels::BLOCK);
  for (int64_t task = crew->claim(); task < a.heads * groups * blocks; task = crew->claim()) {
    const int64_t token = task % blocks * panels::BLOCK;
    const int64_t panel = task / blocks % groups * panels::GRAIN;
    work(task / blocks / groups, Range{token, std::min(singles, token + panels::BLOCK)},
         Range{panel, std::min(all, panel + panels::GRAIN)});
  }
}

template <class X, class Wt, class C>
void absorb(const Arguments& a, const Crew* crew) {
  const int64_t width = width_of<C>(a.width());
  C* queries = reinterpret_cast<C*>(a.work->queries.data());
  by_heads(a, a.rank, crew, [&](int64_t head, Range tokens, Range some) {
    const auto row = [&](int64_t at) {
      return static_cast<const X*>(a.q) + a.work->singles[at].token * a.q_token + head * a.q_head;
    };
    const Keep<C> keep{queries + head * width, a.heads * width, a.rank, nullptr};
    panels::multiply<X>(absorbing<Wt>(a, head), tokens, some, row, keep);
    if (some.first > 0) return;
    for (int64_t at = tokens.first; at < tokens.end; at++) {
      C* to = keep.to + at * keep.stride;
      copy(row(at) + a.nope, a.rope, to + a.rank);
      std::fill(to + a.width(), to + width, C{});
    }
  });
}

template <class X, class Wt, class C>
void attend(const Arguments& a, const Step* step, const Crew* crew) {
  const int64_t chunks = a.work->chunks.size() * a.heads, pieces = a.work->pieces.size();
  for (int64_t task = crew->claim(); task <= chunks + pieces; task = crew->claim()) {
    if (task < chunks) {
      attend_chunk<X, Wt, C>(a, step, a.work->chunks[task / a.heads], task % a.heads);
    } else if (task < chunks + pieces) {
      attend_piece<X, C>(a, step, a.work->pieces[task - chunks]);
    } else {  // padding
      for (int64_t token = step->cu_seqlens[step->requests]; token < step->tokens; token++)
        std::fill_n(static_cast<X*>(a.out) + token * a.out_token, a.heads * a.value, X{});
    }
  }
}

template <class X, class Wt>
void expand_sums(const Arguments& a, const Crew* crew) {
  const X* summed = reinterpret_cast<const X*>(a.work->summed.data());
  by_heads(a, a.value, crew, [&](int64_t head, Range tokens, Range some) {
    const auto row = [&](int64_t at) { return summed + (at * a.heads + head) * a.rank; };
    panels::multiply<X>(valuing<Wt>(a, head), tokens, some, row,
                        Keep<X>{static_cast<X*>(a.out) + head * a.value, a.out_token, a.value,
                                a.work->singles.data()});
  });
}

void plan(const Arguments& a, const Step* step) {
  Work& work = *a.work;
  work.singles.clear(), work.pieces.clear(), work.chunks.clear();
  int64_t pieces = 0;
  for (int64_t request = 0; request < step->requests; request++) {
    const int64_t begin = step->cu_seqlens[request], end = step->cu_seqlens[request + 1];
    const int64_t context = step->seq_lens[request];
    if (end - begin == 1) {
      work.singles.push_back({request, begin, context, pieces});
      for (int64_t piece = 0; piece < work.singles.back().pieces(); piece++, pieces++)
        work.pieces.push_back({int64_t(work.singles.size()) - 1, piece});
      continue;
    }
    for (int64_t token = begin; token < end; token += TOKENS)
      work.chunks.push_back(
          {request, token, std::min(TOKENS, end - token), context - end + token});
  }
  std::stable_sort(work.chunks.begin(), work.chunks.end(), [](const Chunk& a, const Chunk& b) {
    return (a.position + a.tokens) * a.tokens > (b.position + b.tokens) * b.tokens;
  });
  const size_t count = work.singles.size();
  const auto grow = [](std::vector<float>& room, int64_t size) {
    if (int64_t(room.size()) < size) room.resize(size);
  };
  grow(work.queries, count * a.heads * width_of<bf16>(a.width()));
  grow(work.summed, count * a.heads * a.rank);
  grow(work.partial, pieces * parts_size(a.heads, columns_of(a.rank)));
  if (work.counted < count) {
    work.done = std::make_unique<std::atomic<int64_t>[]>(count);
    work.counted = count;
  }
}

struct Packing {
  const void* w_uk;  // [heads, nope, rank]
  const void* w_uv;  // [heads, value, rank]
  int64_t heads, nope, value, rank;
  void* to_uk;
  void* to_uv;
};

template <class Wt>
void pack_heads(const void* arguments, const Crew* crew) {
  const auto& a = *static_cast<const Packing*>(arguments);
  const auto all = [](const panels::Plain<Wt>& from, Wt* to) {
    for (int64_t panel = 0; panel * panels::PANEL < from.rows; panel++)
      panels::pack(from, panel, to);
    return to + packed_size<Wt>(from.rows, from.columns);
  };
  const int64_t both = packed_size<Wt>(a.rank, a.nope) + packed_size<Wt>(a.nope, a.rank);
  for (int64_t head = crew->claim(); head < a.heads; head = crew->claim()) {
    const Wt* uk = static_cast<const Wt*>(a.w_uk) + head * a.nope * a.rank;
    const Wt* uv = static_cast<const Wt*>(a.w_uv) + head * a.value * a.rank;
    Wt* behind = all({uk, 1, a.rank, a.rank, a.nope}, static_cast<Wt*>(a.to_uk) + head * both);
    all({uk, a.rank, 1, a.nope, a.rank}, behind);
    all({uv, a.rank, 1, a.value, a.rank},
        static_cast<Wt*>(a.to_uv) + head * packed_size<Wt>(a.value, a.rank));
  }
}

const Arguments& given(const void* arguments) { return *static_cast<const Arguments*>(arguments); }

}  // namespace

PDS_OP void* pds_latent_work() { return new Work; }
PDS_OP void pds_latent_work_end(void* work) { delete static_cast<Work*>(work); }
PDS_OP int64_t pds_latent_packed_size(int64_t item, int64_t rows, int64_t columns) {
  return item == 2 ? packed_size<bf16>(rows, columns) : packed_size<float>(rows, columns);
}
PDS_OP void pds_latent_pack_2(const void* a, const Step*, const Crew* c) {
  pack_heads<bf16>(a, c);
}
PDS_OP void pds_latent_pack_4(const void* a, const Step*, const Crew* c) {
  pack_heads<float>(a, c);
}
PDS_OP void pds_latent_plan(const void* a, const Step* s, const Crew* c) {
  if (c->claim() == 0) plan(given(a), s);
}
PDS_OP void pds_latent_write_f32(const void* a, const Step* s, const Crew* c) {
  write<float>(given(a), s, c);
}
PDS_OP void pds_latent_write_bf16(const void* a, const Step* s, const Crew* c) {
  write<bf16>(given(a), s, c);
}

// Named by the dtypes of queries and of weights
#define DTYPES(name, X, Wt)                                                           \
  PDS_OP void pds_latent_absorb_##name(const void* a, const Step*, const Crew* c) {   \
    absorb<X, Wt, Computed<X>>(given(a), c);                                          \
  }                                                                                   \
  PDS_OP void pds_latent_attend_##name(const void* a, const Step* s, const Crew* c) { \
    attend<X, Wt, Computed<X>>(given(a), s, c);                                       \
  }                                                                                   \
  PDS_OP void pds_latent_values_##name(const void* a, const Step*, const Crew* c) {   \
    expand_sums<X, Wt>(given(a), c);                                                  \
  }
DTYPES(f32_f32, float, float)
DTYPES(f32_bf16, float, bf16)
DTYPES(f32_f16, float, half)
DTYPES(bf16_bf16, bf16, bf16)
