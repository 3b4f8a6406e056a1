// Asks the processor once which instruction sets it has, and keeps the chosen table of kernels.
#include "../kernels.h"

namespace mmcore {

extern const Kernels kernels_generic;
#ifdef MMCORE_HAS_AVX2
extern const Kernels kernels_avx2;
#endif
#ifdef MMCORE_HAS_AVX512
extern const Kernels kernels_avx512;
#endif
#ifdef MMCORE_HAS_AVX512_BF16
extern const Kernels kernels_avx512_bf16;
#endif

namespace {

// In ascending order of preference.
std::vector<const Kernels*> supported_tables() {
  std::vector<const Kernels*> tables = {&kernels_generic};
#ifdef MMCORE_HAS_AVX2
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef MMCORE_EMULATE_AVX512
  if (has_avx2) tables.insert(tables.end(), {&kernels_avx512, &kernels_avx512_bf16});  // by name, never the default
#endif
  if (has_avx2) tables.push_back(&kernels_avx2);
#endif
#if defined(MMCORE_HAS_AVX512) && !defined(MMCORE_EMULATE_AVX512)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512) tables.push_back(&kernels_avx512);
#ifdef MMCORE_HAS_AVX512_BF16
  if (has_avx512 && __builtin_cpu_supports("avx512bf16")) tables.push_back(&kernels_avx512_bf16);
#endif
#endif
  return tables;
}

const Kernels*& chosen() {
  static const Kernels* table = supported_tables().back();
  return table;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* table : supported_tables()) names.emplace_back(table->instruction_set);
  return names;
}

bool select_instruction_set(const std::string& name) {
  for (const Kernels* table : supported_tables()) {
    if (name == table->instruction_set) {
      chosen() = table;
      return true;
    }
  }
  return false;
}

}  // namespace mmcore
