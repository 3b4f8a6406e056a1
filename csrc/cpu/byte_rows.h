// Rows as bytes: v·times − centre ≈ v̂ = scale·q with integers q from −127 to 127, and a bound of the difference.
//
// The scale of a row is its largest magnitude over 127. What embeddings have in common, their mean, makes that scale
// coarse and decides nothing, so that it is subtracted; any centre is right, the sample's mean is a good one. The bound
// is computed from the row and v̂ themselves, so that it holds however q was rounded.
#pragma once

#include <vector>

#include "byte_arithmetic.h"
#include "norm_bounds.h"

namespace mmcore {
namespace {

// Rows of bytes are this far apart, with zeros behind the last number, so that whole vectors can be loaded.
constexpr Index kByteAlignment = 64;
constexpr Index byte_stride(Index depth) { return round_up(depth, kByteAlignment); }

// The rounding of a row times a factor and of what is computed from it, relative to the norm of the row. The product of
// two such margins is above what the exact score of a pair is rounded by.
inline double byte_margin(Metric metric, Index depth) {
  return 8 * kUnit + (metric == Metric::kCosine ? gamma_of(roundings_along(depth)) : 0) +
         std::sqrt(8 * gamma64_of(depth));
}

struct ByteRow {
  bool is_ordinary = false;
  double times_norm = 0;          // ‖v·times‖, an upper bound; ∞ or NaN as in NormBounds where it is not ordinary
  double square = 0;              // of v
  double norm = 0, residual = 0;  // upper bounds of ‖v·times − centre‖ and of how far v̂ is from it
  double product = 0;             // (v·times − centre)·other
  float scale = 1;
  std::int32_t sum = 0;  // Σ q
};

// Adding it to a float32 number below 2²² rounds that to an integer, which is then in the last bits.
constexpr float kIntegerRounder = 0x1.8p23f;

// Squares below 2⁻¹²⁶ may have counted as zero: the root of their sum, at most.
constexpr double kLostSquares = 0x1p-53;

// Below it, all q are 0: its inverse would overflow, and rounding counts for more.
constexpr float kLeastTop = 0x1p-80f;

// Sums over a row while it is centred: what its scale and its bounds come from.
struct CentredSums {
  Vec given{}, squares{}, products{}, largest{};

  __attribute__((always_inline)) void add(Vec given_numbers, Vec v, Vec other) {
    given += given_numbers * given_numbers;
    squares += v * v;
    products += v * other;
    const Vec magnitude = reinterpret_cast<Vec>(reinterpret_cast<BitsVec>(v) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }

  float top() const {
    float result = 0;
    for (int lane = 0; lane < kLanes; ++lane) result = largest[lane] > result ? largest[lane] : result;
    return result;
  }
};

// Writes q of `row · times − centre`, and sums of (v − v̂)² and of q.
template <class T>
void store_rounded(const T* row, Index depth, Vec times, const float* centre, float scale, float inverse,
                   std::int8_t* out, Vec& residuals, IntVec& sums) {
  for (Index k = 0; k < depth; k += kLanes) {
    const Vec v = load_first(row + k, depth - k) * times - load_first(centre + k, depth - k),
              raised = v * inverse + kIntegerRounder;
    const IntVec q = reinterpret_cast<IntVec>(raised) - reinterpret_cast<IntVec>(broadcast(kIntegerRounder));
    const Vec residual = v - (raised - kIntegerRounder) * scale;
    residuals += residual * residual;
    sums += q;
    store_bytes(out + k, q, depth - k);
  }
}

template <class T>
ByteRow quantised_row(const T* row, Index depth, Metric metric, const float* centre, const float* other,
                      std::int8_t* out) {
  const Index stride = byte_stride(depth), whole = depth / kByteAlignment * kByteAlignment;
  std::memset(out + whole, 0, stride - whole);
  NormBounds bounds;
  if (metric == Metric::kCosine) bounds = norm_bounds<Multiplied::kAsGiven>(row, depth);
  const double exact_times = times_of(metric, bounds);
  const Vec times = broadcast(static_cast<float>(exact_times));
  CentredSums centred;
  for (Index k = 0; k < depth; k += kLanes) {
    const Vec given = load_first(row + k, depth - k);
    centred.add(given, given * times - load_first(centre + k, depth - k), load_first(other + k, depth - k));
  }
  if (metric != Metric::kCosine) bounds = bounds_from_sums(row, depth, sum(centred.given), 0);
  if (!bounds.is_ordinary()) {
    std::memset(out, 0, stride);
    return {false, bounds.norm, bounds.square};
  }
  const float top = centred.top(), scale = top >= kLeastTop ? top / 127 : 1, inverse = top >= kLeastTop ? 127 / top : 0;
  Vec residuals{};
  IntVec sums{};
  store_rounded(row, depth, times, centre, scale, inverse, out, residuals, sums);
  const double gamma = gamma_of(roundings_along(depth)), times_norm = exact_times * bounds.norm,
               norm = std::sqrt(sum(centred.squares) * (1 + gamma)), residual = std::sqrt(sum(residuals) * (1 + gamma)),
               margin = byte_margin(metric, depth) * (times_norm + norm) + kLostSquares;
  return {true, times_norm, bounds.square, norm + margin, residual + margin, sum(centred.products), scale, sum(sums)};
}

// The mean of a sample of the rows in `range`, as they are quantised: a centre.
template <class T>
void set_centre(Matrix<const T> rows, Metric metric, float* centre) {
  constexpr Index kSample = 256;
  const Index count = minimum(kSample, rows.rows), depth = rows.columns;
  std::fill_n(centre, depth, 0.0f);
  Index added = 0;
  for (Index n = 0; n < count; ++n) {
    const T* row = rows.row(count == 1 ? 0 : n * (rows.rows - 1) / (count - 1));
    const NormBounds bounds = norm_bounds<Multiplied::kAsGiven>(row, depth);
    if (!bounds.is_ordinary()) continue;
    const Vec times = broadcast(static_cast<float>(times_of(metric, bounds)));
    for (Index k = 0; k < depth; k += kLanes)
      store_first(centre + k, load_first(centre + k, depth - k) + load_first(row + k, depth - k) * times, depth - k);
    ++added;
  }
  for (Index k = 0; k < depth; ++k) centre[k] /= static_cast<float>(maximum(1, added));
}

}  // namespace
}  // namespace mmcore
