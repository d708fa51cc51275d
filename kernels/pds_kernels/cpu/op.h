// What an operation is to a program (program.cpp): a function that several threads call at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#define PDS_OP extern "C" __attribute__((visibility("default")))

namespace pds {

// One step, as pds_kernels.plan.AttentionPlan has it: T tokens of B requests, and padding.
struct Step {
  int64_t tokens;
  int64_t requests;
  int64_t pages;              // columns of page_table
  const int32_t* page_table;  // [B, pages]
  const int32_t* seq_lens;    // [B]
  const int32_t* cu_seqlens;  // [B + 1]
  const int64_t* write_slots; // [T]
  const int64_t* positions;   // [T]
  const int64_t* ids;         // [T] token ids
};

// A thread among those that compute an operation together.
struct Crew {
  int member;
  int members;
  std::atomic<int64_t>* next;  // zero when an operation begins

  // The first of `grain` pieces of work that nobody else will do.
  int64_t claim(int64_t grain = 1) const {
    return next->fetch_add(grain, std::memory_order_relaxed);
  }

  // piece(i) for those of 0 … count - 1 that nobody else does, some at a time: a claim costs as
  // much as a small piece, and neighbours lie side by side.
  template <class F>
  void share(int64_t count, F piece) const {
    const int64_t grain = std::clamp<int64_t>(count / (8 * members), 1, 32);
    for (int64_t first = claim(grain); first < count; first = claim(grain))
      for (int64_t i = first; i < std::min(count, first + grain); i++) piece(i);
  }
};

using Op = void(const void* arguments, const Step* step, const Crew* crew);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pds
