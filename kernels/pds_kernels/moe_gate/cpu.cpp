// The gate of a mixture on CPUs: a token is a piece of work.
//
// Exponentials are taken in double precision: then of two scores that differ in the logits none
// overtakes the other, as it might by an approximation's last place.
#include <algorithm>
#include <vector>

#include "op.h"
#include "vec.h"

using namespace pds;

namespace {

enum Score : int64_t { SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN };

struct Arguments {
  const void* logits;  // [T, experts], rows stride apart
  int64_t stride;
  const float* correction;  // [experts]; null: none
  float* weights;           // [T, top_k]
  int64_t* ids;             // [T, top_k]
  int64_t experts;
  int64_t top_k;
  int64_t score;
  int64_t renormalise;
  double scaling;
  int64_t groups;
  int64_t top_groups;
  int64_t two_best;  // of a group count; 0: one
};

constexpr float NO_ZERO = 1e-20f;

// In the order of floats, equal where they are; NaN is the greatest.
int32_t key(float x) {
  if (x != x) return std::numeric_limits<int32_t>::max();
  const int32_t bits = x == 0 ? 0 : bits_of<int32_t>(x);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

// Where the `count` greatest of n scores are, the greatest first and equal ones in order.
void best(const float* scores, int64_t n, int64_t count, int64_t* ids) {
  int64_t held = 0;
  for (int64_t each = 0; each < n; each++) {
    const int32_t mine = key(scores[each]);
    if (held == count && mine <= key(scores[ids[held - 1]])) continue;
    int64_t at = held < count ? held++ : held - 1;
    for (; at > 0 && key(scores[ids[at - 1]]) < mine; at--) ids[at] = ids[at - 1];
    ids[at] = each;
  }
}

void softmax(float* x, int64_t n) {
  float most = x[0];
  for (int64_t i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
  double total = 0;
  for (int64_t i = 0; i < n; i++) {
    x[i] = float(std::exp(double(x[i]) - double(most)));
    total += x[i];
  }
  for (int64_t i = 0; i < n; i++) x[i] /= float(total);
}

struct Room {
  std::vector<float> scores, ranked, of_groups;
  std::vector<int64_t> chosen;
};

// Leaves -inf in place of what is not in one of the token's groups.
void keep_best_groups(const Arguments& a, Room& room) {
  const int64_t size = a.experts / a.groups;
  room.of_groups.resize(a.groups), room.chosen.resize(a.groups);
  for (int64_t group = 0; group < a.groups; group++) {
    const float* members = room.ranked.data() + group * size;
    int64_t two[2];
    const int64_t count = std::min<int64_t>(a.two_best ? 2 : 1, size);
    best(members, size, count, two);
    room.of_groups[group] = members[two[0]] + (count == 2 ? members[two[1]] : 0);
  }
  best(room.of_groups.data(), a.groups, a.top_groups, room.chosen.data());
  const auto end = room.chosen.begin() + a.top_groups;
  for (int64_t group = 0; group < a.groups; group++)
    if (std::find(room.chosen.begin(), end, group) == end)
      std::fill_n(room.ranked.begin() + group * size, size,
                  -std::numeric_limits<float>::infinity());
}

template <class X>
void gate(const void* arguments, const Step* step, const Crew* crew) {
  const auto& a = *static_cast<const Arguments*>(arguments);
  static thread_local Room room;
  room.scores.resize(a.experts);
  crew->share(step->tokens, [&](int64_t token) {
    const X* logits = static_cast<const X*>(a.logits) + token * a.stride;
    float* scores = room.scores.data();
    for (int64_t i = 0; i < a.experts; i++) scores[i] = widen(logits[i]);
    if (a.score == SOFTMAX) softmax(scores, a.experts);
    if (a.score == SIGMOID)
      for (int64_t i = 0; i < a.experts; i++)
        scores[i] = 1.0f / (1.0f + float(std::exp(-double(scores[i]))));

    room.ranked = room.scores;
    if (a.correction)
      for (int64_t i = 0; i < a.experts; i++) room.ranked[i] += a.correction[i];
    if (a.groups > 1) keep_best_groups(a, room);

    float* weights = a.weights + token * a.top_k;
    int64_t* ids = a.ids + token * a.top_k;
    best(room.ranked.data(), a.experts, a.top_k, ids);
    for (int64_t i = 0; i < a.top_k; i++) weights[i] = scores[ids[i]];
    if (a.score == SOFTMAX_OF_CHOSEN) softmax(weights, a.top_k);
    float total = NO_ZERO;
    if (a.renormalise)
      for (int64_t i = 0; i < a.top_k; i++) total += weights[i];
    for (int64_t i = 0; i < a.top_k; i++)
      weights[i] = (a.renormalise ? weights[i] / total : weights[i]) * float(a.scaling);
  });
}

}  // namespace

PDS_OP void pds_gate_f32(const void* a, const Step* s, const Crew* c) { gate<float>(a, s, c); }
PDS_OP void pds_gate_bf16(const void* a, const Step* s, const Crew* c) { gate<bf16>(a, s, c); }
PDS_OP void pds_gate_f16(const void* a, const Step* s, const Crew* c) { gate<half>(a, s, c); }
