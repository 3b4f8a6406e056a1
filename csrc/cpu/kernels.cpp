// Compiled once per instruction set, each time with that set's flags, MMCORE_LANES and MMCORE_ISA. Everything it
// includes has internal linkage: the linker must never merge an AVX-512 copy of a function into the table of another
// set.
#include "../kernels.h"

#include "distillation_backward.h"
#include "hardest_negatives.h"
#include "normalize.h"
#include "peak.h"
#include "prefix_similarity_backward.h"
#include "projection_backward.h"
#include "sigmoid_similarity.h"
#include "softmax_similarity.h"
#include "softmax_similarity_backward.h"
#include "topk.h"

#define MMCORE_JOIN(a, b) a##b
#define MMCORE_TABLE(isa) MMCORE_JOIN(kernels_, isa)
#define MMCORE_TEXT(isa) #isa
#define MMCORE_NAME(isa) MMCORE_TEXT(isa)

namespace mmcore {

extern const Kernels MMCORE_TABLE(MMCORE_ISA) = {
    MMCORE_NAME(MMCORE_ISA),
    kHasBfloat16Products,
    kHasMatrixUnit,
    l2_normalize_forward,
    l2_normalize_backward,
    project_forward,
    project_backward,
    softmax_similarity_forward,
    softmax_similarity_backward,
    sigmoid_similarity_forward,
    sigmoid_similarity_gradients,
    prefix_similarity_forward,
    prefix_similarity_backward,
    distillation_forward,
    distillation_backward,
    hardest_negatives,
    topk,
    prepare_gallery,
    measure_peak,
};

}  // namespace mmcore
