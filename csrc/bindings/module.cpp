// The module mmcore._C: calls the kernels on arrays that Python passes. Only this folder knows Python.
//
// Every array comes by DLPack: as a capsule, or as an object with the method __dlpack__. The caller allocates outputs.
#include "arrays.h"

namespace mmcore {
namespace {

double measure_peak(bool in_bfloat16, int threads) {
  checked_threads(threads);
  py::gil_scoped_release released;
  return kernels().measure_peak(in_bfloat16, threads);
}

}  // namespace
}  // namespace mmcore

PYBIND11_MODULE(_C, module) {
  using namespace pybind11::literals;
  module.doc() = "Compiled kernels of mmcore over DLPack arrays; shapes and units in csrc/kernels.h.";
  module.def("instruction_set", [] { return mmcore::kernels().instruction_set; });
  module.def("instruction_sets", &mmcore::instruction_sets);
  module.def("select_instruction_set", &mmcore::select_instruction_set, "name"_a);
  module.def("obstacle_to_matrix_unit", &mmcore::obstacle_to_matrix_unit);
  module.def("has_bfloat16_products", [] { return mmcore::kernels().has_bfloat16_products; });
  module.def("has_matrix_unit", [] { return mmcore::kernels().has_matrix_unit; });
  module.def("measure_peak", &mmcore::measure_peak, "in_bfloat16"_a, "threads"_a);
  mmcore::bind_projection(module);
  mmcore::bind_retrieval(module);
  mmcore::bind_similarity(module);
}
