// Search of the best items over arrays.
#include <limits>

#include "arrays.h"
#include "prepared_gallery.h"

namespace mmcore {
namespace {

Metric metric_of(const std::string& name) {
  if (name == "inner_product") return Metric::kInnerProduct;
  if (name == "cosine") return Metric::kCosine;
  if (name == "l2") return Metric::kL2;
  refuse("metric must be one of 'inner_product', 'cosine', 'l2', got '" + name + "'");
}

FirstPass first_pass_of(const std::string& name) {
  if (name == "auto") return FirstPass::kAuto;
  if (name == "full") return FirstPass::kFull;
  if (name == "int8") return FirstPass::kInt8;
  refuse("first_pass must be one of 'auto', 'full', 'int8', got '" + name + "'");
}

AnyMatrix gallery_of(const Array& array, Index columns) {
  const AnyMatrix gallery = any_matrix("gallery", array, -1, columns);
  if (gallery.rows > std::numeric_limits<std::int32_t>::max()) refuse("gallery must have fewer than 2^31 rows");
  return gallery;
}

// The memory of a matrix (rows, k) without gaps.
template <class T>
T* dense(const char* name, const Array& array, Index rows, Index k, bool is_written) {
  const dlpack::DLTensor& tensor = array.tensor(name, is_written);
  if (tensor.ndim != 1)
    refuse(std::string(name) + " must have 1 dimension, the rows one after another, got " +
           std::to_string(tensor.ndim));
  return vector<T>(name, array, rows * k, is_written);
}

FoundItems items_of(const Array& scores, const Array& indices, Index rows, Index k, bool is_written) {
  if (scores.is_none() && indices.is_none()) return {};
  return {dense<double>("scores", scores, rows, k, is_written), dense<Index>("indices", indices, rows, k, is_written)};
}

// A vector of bytes of any size.
std::pair<std::uint8_t*, Index> bytes_of(const char* name, const Array& array, bool is_written) {
  const dlpack::DLTensor& tensor = array.tensor(name, is_written);
  const Index size = tensor.ndim == 1 ? tensor.shape[0] : 0;
  return {vector<std::uint8_t>(name, array, size, is_written), size};
}

ByteGallery prepared_of(const AnyMatrix& gallery, Metric metric, const Array& array) {
  if (array.is_none()) return {};
  const auto [memory, size] = bytes_of("prepared", array, false);
  if (reinterpret_cast<std::uintptr_t>(memory) % alignof(double) != 0) refuse("prepared must be aligned to 8 bytes");
  const std::string fault = fault_of_prepared(gallery, metric, memory, size);
  if (!fault.empty()) refuse("prepared " + fault);
  return prepared_parts(gallery, memory);
}

void topk(const Array& queries, const Array& gallery, Index k, const std::string& metric, Index offset,
          const Array& bias, const Array& query_group, const Array& gallery_group, const Array& excluded,
          const std::string& first_pass, const Array& prepared, const Array& best_scores, const Array& best_indices,
          const Array& scores, const Array& indices, int threads) {
  TopkInputs inputs;
  inputs.queries = any_matrix("queries", queries, -1, -1);
  inputs.gallery = gallery_of(gallery, inputs.queries.columns);
  if (inputs.gallery.dtype != inputs.queries.dtype) throw py::type_error("gallery must have the dtype of queries");
  if (k < 1) refuse("k must be at least 1, got " + std::to_string(k));
  const Index rows = inputs.queries.rows, items = inputs.gallery.rows;
  inputs.k = k;
  inputs.metric = metric_of(metric);
  inputs.offset = offset;
  inputs.bias = optional_vector<double>("bias", bias, items);
  if (query_group.is_none() != gallery_group.is_none()) refuse("query_group and gallery_group must be given together");
  inputs.query_group = optional_vector<Index>("query_group", query_group, rows);
  inputs.gallery_group = optional_vector<Index>("gallery_group", gallery_group, items);
  inputs.excluded = optional_vector<Index>("excluded", excluded, rows);
  inputs.first_pass = first_pass_of(first_pass);
  inputs.prepared = prepared_of(inputs.gallery, inputs.metric, prepared);
  const FoundItems best = items_of(best_scores, best_indices, rows, k, false),
                   found = items_of(scores, indices, rows, k, true);
  checked_threads(threads);
  py::gil_scoped_release released;
  kernels().topk(inputs, best, found, threads);
}

Index size_of_prepared(const Array& gallery) { return prepared_size(gallery_of(gallery, -1)); }

void prepare_gallery(const Array& gallery, const std::string& metric, const Array& prepared, int threads) {
  const AnyMatrix rows = gallery_of(gallery, -1);
  const Metric checked = metric_of(metric);
  const auto [memory, size] = bytes_of("prepared", prepared, true);
  if (size != prepared_size(rows))
    refuse("prepared must have " + std::to_string(prepared_size(rows)) + " bytes, got " + std::to_string(size));
  checked_threads(threads);
  py::gil_scoped_release released;
  write_prepared_header(rows, checked, memory);
  kernels().prepare_gallery(rows, checked, prepared_parts(rows, memory), threads);
}

}  // namespace

void bind_retrieval(py::module_& module) {
  using namespace py::literals;
  module.def("topk", &topk, "queries"_a, "gallery"_a, "k"_a, "metric"_a, "offset"_a, "bias"_a, "query_group"_a,
             "gallery_group"_a, "excluded"_a, "first_pass"_a, "prepared"_a, "best_scores"_a, "best_indices"_a,
             "scores"_a, "indices"_a, "threads"_a);
  module.def("prepared_size", &size_of_prepared, "gallery"_a);
  module.def("prepare_gallery", &prepare_gallery, "gallery"_a, "metric"_a, "prepared"_a, "threads"_a);
}

}  // namespace mmcore
