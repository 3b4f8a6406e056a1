// How a number of a first pass bounds the score of its pair: one set of terms for all metrics and passes.
//
//   value = (score − shift_i) / m       |number·factor_i·factor_j + offset_i + shift_j − value| ≤ error_i·norm_j +
//                                                                                               norm_i·residual_j
//   inner product   m = 1, shift_i = 0, shift_j = bias_j
//   cosine          the same; rows are divided by their norms
//   l2              m = 2, shift_i = −‖x_i‖², shift_j = (bias_j − ‖y_j‖²) / 2
//
// For a number x̂·ŷ whose sum is computed with the relative error ε,
//
//   |number − x·y| ≤ ‖x − x̂‖·‖ŷ‖ + ‖x‖·‖y − ŷ‖ + ε·‖x̂‖·‖ŷ‖
//
// because x·y − x̂·ŷ = (x − x̂)·ŷ + x·(y − ŷ). So error_i = ‖x_i − x̂_i‖ + ε·‖x̂_i‖ and norm_j = ‖ŷ_j‖. Where ‖y − ŷ‖ is
// 0 for all rows, the second term is left out. Bytes stand for rows minus a centre: x·y = x·m + c·(y − m) +
// (x − c)·(y − m), of which the first is the offset of the row, and the second is a part of shift_j.
#pragma once

#include <vector>

#include "norm_bounds.h"
#include "scratch.h"

namespace mmcore {
namespace {

// Computing a bound rounds a few times itself.
constexpr double kInflation = 1 + 0x1p-20;

// What a pass says of one query; of one that is not ordinary it says nothing else.
struct QueryRow {
  bool is_ordinary;
  double norm, residual, factor, offset;
};

// Of the queries of one chunk.
struct QueryTerms {
  explicit QueryTerms(Index rows)
      : factor(rows),
        error(rows),
        norm(rows),
        offset(rows),
        shift(rows),
        slack(rows),
        inverse(rows),
        is_ordinary(rows) {}

  // `epsilon` is the relative error of sums, with all that the evaluation of a bound adds.
  template <class T>
  void set(Index i, const T* row, Index depth, Metric metric, const QueryRow& of_pass, double epsilon) {
    const double square = exact_product(row, row, depth);
    const bool is_l2 = metric == Metric::kL2;
    is_ordinary[i] = of_pass.is_ordinary;
    inverse[i] = inverse_norm(square);
    shift[i] = is_l2 ? -square : 0;
    // Above 0 for rows of zeros too: a product with ∞ is then ∞.
    if (!of_pass.is_ordinary) {
      factor[i] = norm[i] = offset[i] = 0, error[i] = 1, slack[i] = 0;
      return;
    }
    const double norm_of_numbers = of_pass.norm + of_pass.residual;
    slack[i] = (is_l2 ? 2 * gamma64_of(depth) * square : 0) + 8 * kUnit * std::abs(of_pass.offset);
    factor[i] = static_cast<float>(of_pass.factor);
    error[i] = rounded_up((of_pass.residual + epsilon * norm_of_numbers) * kInflation + 0x1p-100);
    norm[i] = rounded_up(of_pass.norm * kInflation);
    offset[i] = static_cast<float>(of_pass.offset);
  }

  std::vector<float> factor, error, norm, offset;
  std::vector<double> shift, slack, inverse;
  std::vector<std::uint8_t> is_ordinary;  // otherwise all scores of the row are computed in float64
};

// Of one row of the gallery, without its bias. A norm of ∞ has every pair scored in float64, a NaN none. The exact
// shift lies between shift − 2·shift_radius and shift.
struct RowTerms {
  float factor, norm, residual, shift, shift_radius;
};

// `shift` is right but for `radius`.
inline RowTerms row_terms(double factor, double norm, double residual, double shift, double radius) {
  const double widened = (radius + 16 * kUnit * std::abs(shift)) * kInflation + 0x1p-100;
  return {static_cast<float>(factor), rounded_up(norm * kInflation), rounded_up(residual * kInflation),
          rounded_up(shift + widened), rounded_up(widened)};
}

inline RowTerms terms_of_unbounded_row(double norm) { return {0, static_cast<float>(norm), 0, 0, 0}; }

// The part of shift_j that a metric asks for: −‖y‖²/2, and how far it may be off.
struct MetricShift {
  double shift = 0, radius = 0;

  MetricShift(Metric metric, double square, Index depth) {
    if (metric != Metric::kL2) return;
    shift = -square / 2;
    radius = gamma_of(roundings_along(depth)) * square;
  }
};

// Of the rows of the gallery in one block, as arrays of one thread.
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

  void set(Index c, const RowTerms& row) const {
    factor[c] = row.factor, norm[c] = row.norm, residual[c] = row.residual;
    shift[c] = row.shift, shift_radius[c] = row.shift_radius;
  }

  void add_bias(Index c, Metric metric, double bias) const {
    if (!(std::abs(bias) <= kLargestNorm)) {
      // A NaN stays one, of the bias or of the row.
      norm[c] += bias != bias ? std::numeric_limits<float>::quiet_NaN() : kInfinity;
      return;
    }
    const double added = metric == Metric::kL2 ? bias / 2 : bias,
                 radius = 16 * kUnit * (std::abs(added) + std::abs(shift[c]));
    shift[c] = rounded_up(shift[c] + added + radius);
    shift_radius[c] = rounded_up(shift_radius[c] + radius * kInflation);
  }

  float *factor, *norm, *residual, *shift, *shift_radius;
  std::int32_t* correction;  // of a number in int32, before it is converted
};

}  // namespace
}  // namespace mmcore
