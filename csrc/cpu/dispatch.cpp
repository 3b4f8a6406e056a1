// Asks the processor once which instruction sets it has, and keeps the chosen table of kernels.
#include "../kernels.h"

#ifdef MMCORE_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
#ifdef MMCORE_HAS_AMX
extern const Kernels kernels_amx;
#endif
#ifdef MMCORE_EMULATE_AMX
extern const Kernels kernels_emulated_amx;
#endif

namespace {

#ifdef MMCORE_HAS_AMX
// What stands in the way of the matrix unit; empty where nothing does. The system saves the tiles of a process at a
// switch of threads only once the process has asked for that.
std::string obstacle_to_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx);
  if ((edx & kBfloat16) == 0 || (edx & kTile) == 0 || !__builtin_cpu_supports("avx512bf16"))
    return "this processor has no AMX for bfloat16";
  constexpr long kGetPermission = 0x1022, kAskPermission = 0x1023, kTileData = 18;
  unsigned long permitted = 0;
  syscall(SYS_arch_prctl, kAskPermission, kTileData);
  syscall(SYS_arch_prctl, kGetPermission, &permitted);
  if ((permitted >> kTileData & 1) == 0) return "the operating system does not permit this process to use AMX";
  return {};
}
#endif

// In ascending order of preference.
std::vector<const Kernels*> supported_tables() {
  std::vector<const Kernels*> tables = {&kernels_generic};
#ifdef MMCORE_HAS_AVX2
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  // Emulated ones are chosen by name and are never the default.
#ifdef MMCORE_EMULATE_AMX
  if (has_avx2) tables.push_back(&kernels_emulated_amx);
#endif
#ifdef MMCORE_EMULATE_AVX512
  if (has_avx2) tables.insert(tables.end(), {&kernels_avx512, &kernels_avx512_bf16});
#endif
  if (has_avx2) tables.push_back(&kernels_avx2);
#endif
#if defined(MMCORE_HAS_AVX512) && !defined(MMCORE_EMULATE_AVX512)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512) tables.push_back(&kernels_avx512);
#ifdef MMCORE_HAS_AVX512_BF16
  // Intel multiplies pairs of bfloat16 at half the rate of float32, so the widened numbers are faster there.
  const bool are_pairs_slow = __builtin_cpu_is("intel");
  if (has_avx512 && __builtin_cpu_supports("avx512bf16"))
    tables.insert(tables.end() - (are_pairs_slow ? 1 : 0), &kernels_avx512_bf16);
#endif
#ifdef MMCORE_HAS_AMX
  if (has_avx512 && obstacle_to_amx().empty()) tables.push_back(&kernels_amx);
#endif
#endif
  return tables;
}

const std::vector<const Kernels*>& tables() {
  static const std::vector<const Kernels*> result = supported_tables();
  return result;
}

const Kernels*& chosen() {
  static const Kernels* table = tables().back();
  return table;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.emplace_back(table->instruction_set);
  return names;
}

bool select_instruction_set(const std::string& name) {
  for (const Kernels* table : tables()) {
    if (name == table->instruction_set) {
      chosen() = table;
      return true;
    }
  }
  return false;
}

std::string obstacle_to_matrix_unit() {
#ifdef MMCORE_HAS_AMX
  return obstacle_to_amx();
#else
  return "the compiled module was built without AMX";
#endif
}

}  // namespace mmcore
