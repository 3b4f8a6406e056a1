// A gallery prepared as bytes, as one array that can be stored: what it says of itself, and where its parts lie.
//
//   header · bytes (M, stride) · factor (M,) · norm (M,) · residual (M,) · square (M,) · sum (M,)
//
// Every part begins at a multiple of 64 bytes. Numbers are little-endian, as on every processor with these kernels; the
// layout is the same on every instruction set.
#pragma once

#include <string>

#include "../kernels.h"

namespace mmcore {

struct PreparedHeader {
  char magic[8];
  std::uint32_t version, dtype, metric, unused;
  std::int64_t rows, columns, size;
  std::uint64_t fingerprint;  // of a few rows, so that another gallery of the same shape is noticed
};

// The size in bytes.
Index prepared_size(const AnyMatrix& gallery);
// The parts; their memory begins at `memory`.
ByteGallery prepared_parts(const AnyMatrix& gallery, std::uint8_t* memory);
void write_prepared_header(const AnyMatrix& gallery, Metric metric, std::uint8_t* memory);
// What is wrong with an array of `size` bytes as what was prepared of this gallery; empty where nothing is.
std::string fault_of_prepared(const AnyMatrix& gallery, Metric metric, const std::uint8_t* memory, Index size);

}  // namespace mmcore
