// Last steps of a backward, after the products with G: multiplying by the scale, and summing G for the biases.
#pragma once

#include <algorithm>
#include <cmath>

#include "choose_arithmetic.h"
#include "float64.h"
#include "normalize.h"
#include "similarity_blocks.h"

namespace mmcore {
namespace {

// Multiplies the gradient by the scale. If `sums`, returns Σ_i ⟨m_i, gradient_i⟩ of the gradient before that.
double scale_gradient(MutableMatrix gradient, const AnyMatrix& features, double scale, bool sums, int threads) {
  std::vector<double> row_dots(gradient.rows);
  visit_dtype(features, [&](auto m) {
    for_each_stripe(threads, gradient.rows, 1, [&](Range rows, int) {
      for (Index i = rows.begin; i < rows.end; ++i) {
        if (sums) row_dots[i] = exact_dot(m.row(i), gradient.row(i), m.columns);
        scale_row(gradient.row(i), gradient.columns, static_cast<float>(scale));
      }
    });
  });
  double total = 0;
  for (double dot : row_dots) total += dot;
  return total;
}

// Multiplies the gradients of x and y by the scale, and sets the gradient of the scale. In a symmetric matrix x holds
// the gradient of both sides, so every ⟨x_i, x_j⟩ was counted twice.
void finish_gradients(const SimilarityInputs& inputs, SimilarityGradients& gradients, int threads) {
  const bool has_x = gradients.x.data != nullptr, has_y = gradients.y.data != nullptr;
  const double scale = inputs.scale / gradients.power;
  if (has_y) gradients.scale = scale_gradient(gradients.y, inputs.y, scale, !has_x, threads);
  if (has_x) gradients.scale = scale_gradient(gradients.x, inputs.x, scale, true, threads);
  gradients.scale /= inputs.is_symmetric ? 2 * gradients.power : gradients.power;
}

// The power of two that raises the largest of some upstream gradients to about 2³⁰. Where nearly every pair is told
// apart, G is far below them, and the last parts of its numbers would be denormal. 1 where there is none to raise.
inline double raising_power(std::initializer_list<Numbers<double>> upstream) {
  double largest = 0;
  for (const Numbers<double>& part : upstream)
    for (Index i = 0; part.data != nullptr && i < part.size; ++i) largest = std::max(largest, std::abs(part.data[i]));
  return largest > 0 && std::isfinite(largest) ? std::exp2(30 - std::ilogb(largest)) : 1;
}

// Sums of G by rows and by columns, for the gradients of biases. In a symmetric matrix an entry holds G_ij + G_ji, and
// the pair occurs once, or twice in a diagonal block. So `rows` adds up to Σ G, and rows[i] + columns[i] is the sum of
// row i of G + Gᵀ.
class GradientSums {
 public:
  GradientSums(Index rows, Index columns, bool has_rows, bool has_columns)
      : rows(has_rows ? rows : 0), columns(has_columns ? columns : 0) {}

  void add(const Block& block, const float* g) {
    if (!rows.empty()) {
      for (Index r = 0; r < block.rows.size(); ++r) {
        Vec total{};
        for_each_vector(block.columns.size(),
                        [&](Index c, Index count) { total += load_first(g + r * kBlockStride + c, count); });
        rows[block.rows.begin + r] += block.is_diagonal ? sum(total) / 2 : sum(total);
      }
    }
    for (Index c = 0; !columns.empty() && c < block.columns.size(); ++c) {
      double total = 0;
      for (Index r = 0; r < block.rows.size(); ++r) total += g[r * kBlockStride + c];
      columns[block.columns.begin + c] += block.is_diagonal ? total / 2 : total;
    }
  }

  void add_columns_to_rows() {
    for (std::size_t i = 0; i < columns.size(); ++i) rows[i] += columns[i];
  }

  double total() const {
    double result = 0;
    for (double row : rows) result += row;
    return result;
  }

  std::vector<double> rows, columns;
};

}  // namespace
}  // namespace mmcore
