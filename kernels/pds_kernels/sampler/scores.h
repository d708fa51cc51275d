// Scores of a row in order: its best, its likeliest, and where top_k, top_p and min_p end.
#pragma once

#include <algorithm>
#include <vector>

#include "noise.h"

namespace pds {

typedef double vd __attribute__((vector_size(4 * W)));
typedef int64_t vl __attribute__((vector_size(4 * W)));
typedef float vfq __attribute__((vector_size(4 * Q)));
typedef int32_t viq __attribute__((vector_size(4 * Q)));

inline constexpr float INFINITE = std::numeric_limits<float>::infinity();

// A row of this rank's logits; its scores are they over a temperature.
struct Row {
  const float* logits;
  int64_t columns;
  int64_t first;  // the id of column 0
  float temperature;

  float score(int64_t column) const { return logits[column] / temperature; }
};

// A score and its id as one number, in the order of plan.packed: the lowest id wins ties, and NaN
// is above all.
inline int64_t packed(float score, int64_t id) {
  const int32_t bits = score == score ? bits_of<int32_t>(score + 0.0f) : 0x7fc00000;
  const int32_t rising = bits ^ ((bits >> 31) & 0x7fffffff);
  return int64_t(uint64_t(rising) << 32 | (0xffffffffu - uint32_t(id)));
}
inline float score_of(int64_t packed) {
  const auto rising = int32_t(packed >> 32);
  return bits_of<float>(rising ^ ((rising >> 31) & 0x7fffffff));
}
inline int64_t id_of(int64_t packed) { return 0xffffffffu - uint32_t(packed); }

struct Extremes {
  float most;  // NaN where one is among them
  float least;
  int64_t column;  // the first of the most
};

// Of columns begin to end, at least one.
inline Extremes extremes(const float* logits, int64_t begin, int64_t end) {
  constexpr int64_t CHUNK = 64 * W;
  Extremes found{-INFINITE, INFINITE, begin};
  vi nan = {};
  int64_t chunk = begin;
  for (int64_t at = begin; at < end; at += CHUNK) {
    const int64_t stop = std::min(end, at + CHUNK);
    vf most = splat(-INFINITE), least = splat(INFINITE);
    int64_t i = at;
    for (; i + W <= stop; i += W) {
      const vf x = load(logits + i);
      most = greater(x, most);
      least = x < least ? x : least;
      nan |= x != x;
    }
    for (; i < stop; i++) {
      const float x = logits[i];
      if (x > most[0]) most[0] = x;
      if (x < least[0]) least[0] = x;
      nan[0] |= x != x;
    }
    const float top = greatest(most);
    if (top > found.most) found.most = top, chunk = at;
    found.least = std::min(found.least, -greatest(-least));
  }
  for (int i = 0; i < W; i++)
    if (nan[i]) found.most = std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = chunk; i < std::min(end, chunk + CHUNK); i++)
    if (logits[i] == found.most) {
      found.column = i;
      break;
    }
  return found;
}

// Puts the `most` likeliest of a row into `found`, in no order.
inline void likeliest(const Row& row, int64_t most, std::vector<int64_t>& found) {
  static thread_local std::vector<float> peaks;
  // Each peak is the greatest of some 64 logits. As many tokens as there are peaks reach the least
  // of the greatest peaks, so all that do not reach it are none of the likeliest.
  constexpr int64_t STRIPE = 64 * W;
  peaks.clear();
  for (int64_t at = 0; at < row.columns; at += STRIPE) {
    const int64_t stop = std::min(row.columns, at + STRIPE);
    vf peak = splat(-INFINITE);
    int64_t i = at;
    for (; i + W <= stop; i += W) peak = greater(load(row.logits + i), peak);
    for (; i < stop; i++)
      if (row.logits[i] > peak[0]) peak[0] = row.logits[i];
    peaks.insert(peaks.end(), reinterpret_cast<float*>(&peak), reinterpret_cast<float*>(&peak) + W);
  }
  float bound = -INFINITE;
  if (most <= int64_t(peaks.size())) {
    const auto least = peaks.begin() + (most - 1);
    std::nth_element(peaks.begin(), least, peaks.end(), std::greater<float>());
    bound = *least / row.temperature;
  }
  found.clear();
  auto take = [&](int64_t column) {
    const float score = row.score(column);
    if (!(score < bound)) found.push_back(packed(score, row.first + column));
  };
  // Just below the bound in logits, whatever the division rounds; NaN, which all pass, for infinity
  const float near = std::isfinite(bound) ? bound * row.temperature : std::nanf("");
  const vf low = splat(near - std::abs(near) * 1e-6f - 1e-37f);
  int64_t i = 0;
  for (; i + W <= row.columns; i += W)
    for (uint32_t bits = above(load(row.logits + i), low); bits; bits &= bits - 1)
      take(i + __builtin_ctz(bits));
  for (; i < row.columns; i++) take(i);
  if (most < int64_t(found.size())) {
    std::nth_element(found.begin(), found.begin() + most, found.end(), std::greater<int64_t>());
    found.resize(most);
  }
}

// exp(x) within two last places, for x up to 0; 0 below -708.
inline vd exp(vd x) {
  const vd least = -708.0 - vd{};
  const vd y = x < least ? least : x;
  const vd shifted = y * 1.4426950408889634 + 0x1.8p52;  // a whole number in the low bits
  const vl power = bits_of<vl>(shifted) - bits_of<int64_t>(0x1.8p52);
  const vd n = shifted - 0x1.8p52;
  const vd r = (y - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  constexpr double OVER[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                             1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                             1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  vd p = OVER[0] - vd{};
#pragma GCC unroll 13
  for (int i = 1; i < 14; i++) p = p * r + OVER[i];
  p = p * bits_of<vd>((power + 1023) << 52);
  return x < least ? vd{} : p;
}

// Calls `each(scores)` for each Q scores of a row. What is past the last column is -infinity.
template <class Each>
inline void over(const Row& row, Each each) {
  auto some = [&](vfq logits) { each(logits / row.temperature); };
  int64_t at = 0;
  for (; at + Q <= row.columns; at += Q) {
    vfq logits;
    std::memcpy(&logits, row.logits + at, sizeof logits);
    some(logits);
  }
  if (at < row.columns) {
    vfq logits = -INFINITE - vfq{};
    for (int i = 0; at + i < row.columns; i++) logits[i] = row.logits[at + i];
    some(logits);
  }
}

// exp(score - best), or 0 where the score is below `least`; the difference is a float.
inline vd weights(vfq scores, float best, float least) {
  const vd all = exp(__builtin_convertvector(scores - best, vd));
  return __builtin_convertvector(scores, vd) < double(least) ? vd{} : all;
}

// What one row asks for: top_k (0: any), top_p, and log(min_p).
struct Bounds {
  int64_t top_k;
  float top_p;
  float log_min_p;
};

struct Weighed {
  int64_t packed;
  double weight;
  bool operator>(const Weighed& other) const { return packed > other.packed; }
};

// The last of `some` that may be drawn, of which the first always may. `before`: the weight of all
// that are likelier than these. Each half that is left contains it.
inline int64_t last_allowed(std::vector<Weighed>& some, double before, double total, float top_p) {
  auto allowed = [&](double weight) { return float(weight / total) < top_p; };
  auto begin = some.begin(), end = some.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, std::greater<Weighed>());
    double upper = before;
    for (auto at = begin; at < middle; ++at) upper += at->weight;
    if (allowed(upper)) begin = middle, before = upper;
    else end = middle;
  }
  return begin->packed;
}

// Packed, the last of a row's tokens that may be drawn. `all`: the row's extremes, of which the
// greatest has a finite score.
inline int64_t last_of(const Row& row, const Extremes& all, const Bounds& bounds) {
  static thread_local std::vector<int64_t> likely;
  static thread_local std::vector<Weighed> some;
  static thread_local std::vector<double> masses;
  const float best = all.most / row.temperature, floor = best + bounds.log_min_p;
  const int64_t lowest = packed(floor, 0xffffffff);  // min_p leaves all that are equal to its floor
  some.clear();
  if (bounds.top_k > 0 && bounds.top_k < row.columns) {
    likeliest(row, bounds.top_k, likely);
    double total = 0;
    for (int64_t each : likely) {
      if (each < lowest) continue;
      some.push_back({each, std::exp(double(score_of(each) - best))});
      total += some.back().weight;
    }
    return last_allowed(some, 0, total, bounds.top_p);
  }
  if (bounds.top_k == 0 && bounds.top_p >= 1) return lowest;
  // The weights of bins of scores show in which of them it is, and only that one is put in order
  constexpr int BINS = 2048;
  constexpr float LAST = BINS - 1;
  constexpr float WIDEST = 64;  // what is further below weighs nothing
  const float range = std::min(WIDEST, best - all.least / row.temperature);
  const float scale = range > 1e-30f ? BINS / range : 0;
  masses.assign(BINS, 0);
  over(row, [&](vfq scores) {
    const vd each = weights(scores, best, floor);
    const vfq far = (best - scores) * scale;
    const viq bins = __builtin_convertvector(far < LAST ? far : LAST - vfq{}, viq);
    int32_t into[Q];
    double mass[Q];
    std::memcpy(into, &bins, sizeof bins), std::memcpy(mass, &each, sizeof each);
    for (int i = 0; i < Q; i++) masses[into[i]] += mass[i];
  });
  double total = 0;
  for (double mass : masses) total += mass;
  double before = 0, sum = 0;
  int wanted = 0;
  for (int i = 0; i < BINS; i++) {
    if (masses[i] > 0 && float(sum / total) < bounds.top_p) wanted = i, before = sum;
    sum += masses[i];
  }
  auto take = [&](int64_t column) {
    const float score = row.score(column), far = (best - score) * scale;
    if (int(far < LAST ? far : LAST) == wanted && score >= floor)
      some.push_back({packed(score, row.first + column), std::exp(double(score - best))});
  };
  const vf begin = splat(float(-wanted)), end = splat(wanted == LAST ? -INFINITE : -wanted - 1.0f);
  int64_t at = 0;
  for (; at + W <= row.columns; at += W) {
    const vf near = (load(row.logits + at) / row.temperature - best) * scale;
    for (uint32_t bits = above(near, end) & ~above(near, begin); bits; bits &= bits - 1)
      take(at + __builtin_ctz(bits));
  }
  for (; at < row.columns; at++) take(at);
  return last_allowed(some, before, total, bounds.top_p);
}

}  // namespace pds
