// The choice of tokens on CPUs, each logit read once or twice.
//
// Words and scores are the definition's bit by bit. Noise takes two logarithms in float64, and is
// computed only where a bound of three instructions may beat the best so far: for some twenty
// tokens of a row. So a row costs ten rounds of Philox for each four tokens, and little more.
#include "scores.h"

#include "op.h"

using namespace pds;

namespace {

struct Drawing {
  const float* logits;  // [R, columns], rows `stride` apart
  int64_t stride;
  int64_t columns;
  int64_t first;  // the id of column 0
  int64_t rows;
  int64_t parts;               // of each row, computed side by side
  const float* temperatures;   // [R]; 0: greedy
  const float* least;          // [R]; null: no row has one
  const int64_t* low;          // [R] words of philox.Draws
  const int64_t* high;
  const int64_t* indices;
  const int64_t* choices;
  const int64_t* top_k;        // [R]; null: rows are drawn from all that reach `least`
  const float* top_p;          // [R]
  const float* log_min_p;      // [R]
  double* values;              // [R, parts]
  int64_t* ids;                // [R, parts]
};

struct Found {
  double value;
  int64_t column;
};

// One draw from some columns of a row.
class Draw {
 public:
  Draw(const Row& row, const Noise& noise, float least, int64_t last)
      : row_(row), noise_(noise), least_(least), last_(last) {
    // A quick score is off by its last places; at temperatures where it is not, it is NaN, which
    // passes every bound
    inverse_ = row.temperature > 1e-30f ? 1 / row.temperature : std::nanf("");
    floor_ = splat(least - std::abs(least) * 1e-6f - 1e-37f);
  }

  Found from(int64_t begin, int64_t end) {
    found_ = {-std::numeric_limits<double>::infinity(), begin};
    reach_ = splat(-INFINITE);
    // Blocks begin where Philox calls do, `lead` before column 0
    const int64_t lead = row_.first % 4;
    int64_t at = (begin + lead) / BLOCK * BLOCK - lead;
    for (; at < end && found_.value < std::numeric_limits<double>::infinity(); at += BLOCK) {
      if (at >= begin && at + BLOCK <= end) {
        block(row_.logits + at, at);
      } else {
        float edge[BLOCK];
        for (int i = 0; i < BLOCK; i++)
          edge[i] = at + i >= begin && at + i < end ? row_.logits[at + i] : -INFINITE;
        block(edge, at);
      }
    }
    return found_;
  }

 private:
  inline void block(const float* logits, int64_t at) {
    vu words[2];
    noise_.words(uint64_t(row_.first + at) / 4, words);
    const vf first = load(logits) * inverse_, second = load(logits + W) * inverse_;
    const vf reach[2] = {first + ceiling(words[0]), second + ceiling(words[1])};
    const uint32_t a = above(reach[0], reach_) & above(first, floor_);
    const uint32_t b = above(reach[1], reach_) & above(second, floor_);
    if (__builtin_expect(a | b, 0)) consider(logits, at, words, reach, a | uint64_t(b) << W);
  }

  __attribute__((noinline)) void consider(const float* logits, int64_t at, const vu (&words)[2],
                                          const vf (&reach)[2], uint64_t some) {
    for (; some; some &= some - 1) {
      const int i = __builtin_ctzll(some);
      if (reach[i / W][i % W] <= reach_[0]) continue;
      const float score = logits[i] / row_.temperature;
      if (score < least_ || (score == least_ && row_.first + at + i > last_)) continue;
      const double value = score == score ? double(score) + gumbel(words[i / W][i % W]) : INFINITE;
      if (value <= found_.value) continue;
      found_ = {value, at + i};
      // What quick scores, float32 and the noise's bound may lose is less
      const float best = float(value);
      reach_ = splat(best - 2e-6f * (std::abs(best) + 32));
    }
  }

  const Row& row_;
  const Noise& noise_;
  float least_;
  int64_t last_;
  float inverse_;
  vf floor_;
  vf reach_;  // what must be above to beat the best so far
  Found found_;
};

Found draw(const Drawing& a, int64_t at, int64_t begin, int64_t end) {
  Row row{a.logits + at * a.stride, a.columns, a.first, a.temperatures[at]};
  if (!(row.temperature > 0)) {
    const Extremes all = extremes(row.logits, begin, end);
    return {all.most, all.column};
  }
  float least = a.least ? a.least[at] : -INFINITE;
  int64_t last = std::numeric_limits<int64_t>::max();
  if (a.top_k) {  // the whole row is this thread's
    const Bounds bounds{a.top_k[at], a.top_p[at], a.log_min_p[at]};
    if (bounds.top_k > 0 || bounds.top_p < 1 || bounds.log_min_p > -INFINITE) {
      const Extremes all = extremes(row.logits, begin, end);
      const float best = all.most / row.temperature;  // a great logit's may be infinite
      if (!std::isfinite(best)) return {best, all.column};
      const int64_t end_of_allowed = last_of(row, all, bounds);
      least = score_of(end_of_allowed), last = id_of(end_of_allowed);
    }
  }
  const Noise noise(a.low[at], a.high[at], a.indices[at], a.choices[at]);
  return Draw(row, noise, least, last).from(begin, end);
}

struct Listing {
  const float* logits;  // [R, columns], rows `stride` apart
  int64_t stride;
  int64_t columns;
  int64_t first;
  int64_t rows;
  const float* temperatures;  // [R]
  int64_t most;               // at most `columns`
  int64_t* packed;            // [R, most]
};

struct Weighing {
  const float* logits;  // [R, columns], rows `stride` apart
  int64_t stride;
  int64_t columns;
  int64_t rows;
  const float* temperatures;  // [R]
  const float* best;          // [R]
  const float* least;         // [R]
  double* sums;               // [R]
};

struct Penalising {
  float* logits;  // rows `stride` apart; others than those of `rows` are left alone
  int64_t stride;
  int64_t columns;          // that have a token
  int64_t rows;             // how many are penalised
  const int64_t* at;        // [rows] which
  const int64_t* slots;     // [rows] of the tables
  const bool* prompted;     // [slots, columns], rows `table_stride` apart
  const int32_t* counts;    // likewise
  int64_t table_stride;
  const float* repetition;  // [rows]
  const float* presence;
  const float* frequency;
};

// As the definition rounds: products are not joined with sums.
__attribute__((optimize("fp-contract=off"))) float penalised(float logit, int32_t count,
                                                             float repetition, float presence,
                                                             float frequency) {
  const float repeated = logit > 0 ? logit / repetition : logit * repetition;
  const float present = repeated - presence * float(count > 0);
  return present - frequency * float(count);
}

double sum(vd v) {
  double all = 0;
  for (int i = 0; i < Q; i++) all += v[i];
  return all;
}

struct Change {
  float* logit;
  float before;
};

// Each thread puts back what it has changed itself.
thread_local std::vector<Change> changes;

void penalise(const Penalising& a, int64_t row) {
  constexpr int64_t SOME = 64;
  float* logits = a.logits + a.at[row] * a.stride;
  const bool* prompted = a.prompted + a.slots[row] * a.table_stride;
  const int32_t* counts = a.counts + a.slots[row] * a.table_stride;
  for (int64_t begin = 0; begin < a.columns; begin += SOME) {
    const int64_t end = std::min(a.columns, begin + SOME);
    if (begin + SOME == end) {
      uint64_t said[SOME / 8], any = 0;
      int32_t count = 0;
      std::memcpy(said, prompted + begin, sizeof said);
      for (uint64_t eight : said) any |= eight;
      for (int64_t i = begin; i < begin + SOME; i++) count |= counts[i];
      if (!(any | uint64_t(count))) continue;  // nearly always
    }
    for (int64_t i = begin; i < end; i++) {
      if (!prompted[i] && !counts[i]) continue;
      changes.push_back({logits + i, logits[i]});
      logits[i] = penalised(logits[i], counts[i], a.repetition[row], a.presence[row],
                            a.frequency[row]);
    }
  }
}

}  // namespace

PDS_OP void pds_draw(const void* arguments, const Step*, const Crew* crew) {
  const auto& a = *static_cast<const Drawing*>(arguments);
  const int64_t share = ceil_div(ceil_div(a.columns, a.parts), BLOCK) * BLOCK;
  for (int64_t task = crew->claim(); task < a.rows * a.parts; task = crew->claim()) {
    const int64_t row = task / a.parts, begin = task % a.parts * share;
    const int64_t end = std::min(a.columns, begin + share);
    Found found{-std::numeric_limits<double>::infinity(), 0};
    if (begin < end) found = draw(a, row, begin, end);
    a.values[task] = found.value, a.ids[task] = a.first + found.column;
  }
}

// The best of each row's parts, in its first place.
PDS_OP void pds_join(const void* arguments, const Step*, const Crew* crew) {
  const auto& a = *static_cast<const Drawing*>(arguments);
  for (int64_t row = crew->claim(); row < a.rows; row = crew->claim()) {
    double* values = a.values + row * a.parts;
    int64_t* ids = a.ids + row * a.parts;
    for (int64_t part = 1; part < a.parts; part++)
      if (!(values[part] <= values[0]) && values[0] == values[0])
        values[0] = values[part], ids[0] = ids[part];
  }
}

PDS_OP void pds_likeliest(const void* arguments, const Step*, const Crew* crew) {
  static thread_local std::vector<int64_t> found;
  const auto& a = *static_cast<const Listing*>(arguments);
  for (int64_t row = crew->claim(); row < a.rows; row = crew->claim()) {
    const Row own{a.logits + row * a.stride, a.columns, a.first, a.temperatures[row]};
    likeliest(own, a.most, found);
    std::sort(found.begin(), found.end(), std::greater<int64_t>());
    std::copy(found.begin(), found.end(), a.packed + row * a.most);
  }
}

PDS_OP void pds_mass(const void* arguments, const Step*, const Crew* crew) {
  const auto& a = *static_cast<const Weighing*>(arguments);
  for (int64_t row = crew->claim(); row < a.rows; row = crew->claim()) {
    const Row own{a.logits + row * a.stride, a.columns, 0, a.temperatures[row]};
    vd sums = {};
    over(own, [&](vfq scores) { sums += weights(scores, a.best[row], a.least[row]); });
    a.sums[row] = sum(sums);
  }
}

// log(sum(exp(logits))), of differences in float64.
PDS_OP void pds_log_sum(const void* arguments, const Step*, const Crew* crew) {
  const auto& a = *static_cast<const Weighing*>(arguments);
  for (int64_t row = crew->claim(); row < a.rows; row = crew->claim()) {
    const Row own{a.logits + row * a.stride, a.columns, 0, 1};
    const double best = extremes(own.logits, 0, a.columns).most;
    vd sums = {};
    if (std::isfinite(best))
      over(own, [&](vfq scores) { sums += exp(__builtin_convertvector(scores, vd) - best); });
    a.sums[row] = std::isfinite(best) ? best + std::log(sum(sums)) : best;
  }
}

PDS_OP void pds_penalise(const void* arguments, const Step*, const Crew* crew) {
  const auto& a = *static_cast<const Penalising*>(arguments);
  changes.clear();
  for (int64_t row = crew->claim(); row < a.rows; row = crew->claim()) penalise(a, row);
}

PDS_OP void pds_restore(const void*, const Step*, const Crew*) {
  for (const Change& each : changes) *each.logit = each.before;
  changes.clear();
}
