// How a number of a first pass bounds the score of its pair: one set of terms for all metrics and passes.
//
//   value = (score − shift_i) / m       |number·factor_i·factor_j + shift_j − value| ≤ error_i·norm_j +
//   norm_i·residual_j
//
//   inner product   m = 1, shift_i = 0, shift_j = bias_j                    factors of float32: 1
//   cosine          the same                                               the inverse norms
//   l2              m = 2, shift_i = −‖x_i‖², shift_j = (bias_j − ‖y_j‖²)/2  1
//
// Factors of bytes are multiplied by their scales. For a number x̂·ŷ whose sum is computed with the relative error ε,
//
//   |number − x·y| ≤ ‖x − x̂‖·‖ŷ‖ + ‖x‖·‖y − ŷ‖ + ε·‖x̂‖·‖ŷ‖
//
// because x·y − x̂·ŷ = (x − x̂)·ŷ + x·(y − ŷ). So error_i = ‖x_i − x̂_i‖ + ε·‖x̂_i‖ and norm_j = ‖ŷ_j‖, both times the
// inverse norms for the cosine. Where ‖y − ŷ‖ is 0 for all rows, the second term is left out.
#pragma once

#include <vector>

#include "norm_bounds.h"
#include "scratch.h"

namespace mmcore {
namespace {

// Computing a bound rounds a few times itself.
constexpr double kInflation = 1 + 0x1p-20;

// Of the queries of one chunk.
struct QueryTerms {
  explicit QueryTerms(Index rows)
      : factor(rows), error(rows), norm(rows), shift(rows), slack(rows), inverse(rows), is_ordinary(rows) {}

  // Row i, with scale 1 where numbers are not bytes. `epsilon` is the relative error of sums, with all that the
  // evaluation of a bound adds.
  template <class T>
  void set(Index i, const T* row, Index depth, Metric metric, const NormBounds& statistics, double scale,
           double epsilon) {
    const double square = exact_product(row, row, depth);
    inverse[i] = inverse_norm(square);
    shift[i] = metric == Metric::kL2 ? -square : 0;
    slack[i] = metric == Metric::kL2 ? 2 * gamma64_of(depth) * square : 0;
    is_ordinary[i] = statistics.is_ordinary();
    const double times = metric == Metric::kCosine ? inverse[i] : 1;
    const double error_of_row = statistics.residual + epsilon * (statistics.norm + statistics.residual);
    factor[i] = is_ordinary[i] ? static_cast<float>(times * scale) : 0;
    // Above 0 for rows of zeros too: a product with ∞ is then ∞.
    error[i] = is_ordinary[i] ? rounded_up(times * error_of_row * kInflation + 0x1p-100) : 1;
    norm[i] = is_ordinary[i] ? rounded_up(times * statistics.norm * kInflation) : 0;
  }

  std::vector<float> factor, error, norm;
  std::vector<double> shift, slack, inverse;
  std::vector<std::uint8_t> is_ordinary;  // otherwise all scores of the row are computed in float64
};

// Of the rows of the gallery in one block, as arrays of one thread. A norm of ∞ has every pair scored in float64, a NaN
// none. value lies between `shift` − 2·shift_radius and `shift`, besides the bound above.
struct ColumnTerms {
  static constexpr Index kPlaces = kBlock + kTileColumns;
  static constexpr Index kFloats = 6 * round_up(kPlaces, 16);

  explicit ColumnTerms(Carver& carver)
      : factor(carver.take(kPlaces)),
        norm(carver.take(kPlaces)),
        residual(carver.take(kPlaces)),
        shift(carver.take(kPlaces)),
        shift_radius(carver.take(kPlaces)),
        correction(reinterpret_cast<std::int32_t*>(carver.take(kPlaces))) {
    for (float* values : {factor, norm, residual, shift, shift_radius}) std::fill_n(values, kPlaces, 0.0f);
    std::fill_n(correction, kPlaces, 0);
  }

  float *factor, *norm, *residual, *shift, *shift_radius;
  std::int32_t* correction;  // of a number in int32, before it is converted
};

// The terms of one row without its shift.
struct RowTerms {
  float factor, norm, residual, square;
};

inline RowTerms row_terms(const NormBounds& statistics, double scale, Metric metric) {
  if (!statistics.is_ordinary()) return {0, static_cast<float>(statistics.norm), 0, 0};
  const double times = metric != Metric::kCosine ? 1
                       : statistics.square == 0  ? 0
                                                 : kInflation / std::sqrt(statistics.square);
  return {static_cast<float>(times / kInflation * scale),
          rounded_up(times * (statistics.norm + statistics.residual) * kInflation),
          rounded_up(times * statistics.residual * kInflation), static_cast<float>(statistics.square)};
}

// Sets the shift of column c, whose other terms are there.
inline void set_shift(const ColumnTerms& terms, Index c, Metric metric, Index depth, float square, const double* bias) {
  const bool is_l2 = metric == Metric::kL2;
  double added = bias == nullptr ? 0 : *bias;
  if (!(std::abs(added) <= kLargestNorm)) {
    // A NaN stays one, of the bias or of the row.
    terms.norm[c] += added != added ? std::numeric_limits<float>::quiet_NaN() : kInfinity;
    added = 0;
  }
  const double subtracted = is_l2 ? square : 0, m = is_l2 ? 2 : 1;
  const double radius =
      (16 * kUnit * (std::abs(added) + subtracted) + gamma_of(roundings_along(depth)) * subtracted) / m + 0x1p-100;
  terms.shift[c] = rounded_up((added - subtracted) / m + radius);
  terms.shift_radius[c] = rounded_up(radius * kInflation);
}

}  // namespace
}  // namespace mmcore
