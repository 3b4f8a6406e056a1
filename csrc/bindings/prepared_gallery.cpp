#include "prepared_gallery.h"

#include <cstring>

namespace mmcore {
namespace {

constexpr char kMagic[8] = {'m', 'm', 'c', 'o', 'r', 'e', 'G', '8'};
constexpr std::uint32_t kVersion = 1;
constexpr Index kAlignment = 64;

constexpr Index aligned(Index size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

Index bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// FNV-1a of at most 64 rows, spread over the gallery.
std::uint64_t fingerprint_of(const AnyMatrix& gallery) {
  constexpr Index kRows = 64;
  std::uint64_t hash = 0xcbf29ce484222325u;
  const Index count = gallery.rows < kRows ? gallery.rows : kRows, bytes = bytes_of(gallery.dtype);
  for (Index n = 0; n < count; ++n) {
    const Index j = count == 1 ? 0 : n * (gallery.rows - 1) / (count - 1);
    const auto* row = static_cast<const std::uint8_t*>(gallery.data) + j * gallery.row_stride * bytes;
    for (Index k = 0; k < gallery.columns * bytes; ++k) hash = (hash ^ row[k]) * 0x100000001b3u;
  }
  return hash;
}

PreparedHeader header_of(const AnyMatrix& gallery, Metric metric) {
  PreparedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.dtype = static_cast<std::uint32_t>(gallery.dtype);
  header.metric = static_cast<std::uint32_t>(metric);
  header.rows = gallery.rows;
  header.columns = gallery.columns;
  header.size = prepared_size(gallery);
  header.fingerprint = fingerprint_of(gallery);
  return header;
}

const char* name_of_dtype(std::uint32_t dtype) {
  const char* names[] = {"float32", "bfloat16", "float16"};
  return dtype < 3 ? names[dtype] : "an unknown dtype";
}
const char* name_of_metric(std::uint32_t metric) {
  const char* names[] = {"inner_product", "cosine", "l2"};
  return metric < 3 ? names[metric] : "unknown";
}

std::string shape_text(Index rows, Index columns) {
  return "(" + std::to_string(rows) + ", " + std::to_string(columns) + ")";
}

}  // namespace

Index prepared_size(const AnyMatrix& gallery) {
  return aligned(sizeof(PreparedHeader)) + gallery.rows * aligned(gallery.columns) + 5 * aligned(4 * gallery.rows);
}

ByteGallery prepared_parts(const AnyMatrix& gallery, std::uint8_t* memory) {
  std::uint8_t* next = memory + aligned(sizeof(PreparedHeader));
  ByteGallery parts;
  parts.stride = aligned(gallery.columns);
  parts.bytes = reinterpret_cast<std::int8_t*>(next);
  next += gallery.rows * parts.stride;
  for (float** part : {&parts.factor, &parts.norm, &parts.residual, &parts.square}) {
    *part = reinterpret_cast<float*>(next);
    next += aligned(4 * gallery.rows);
  }
  parts.sum = reinterpret_cast<std::int32_t*>(next);
  return parts;
}

void write_prepared_header(const AnyMatrix& gallery, Metric metric, std::uint8_t* memory) {
  const PreparedHeader header = header_of(gallery, metric);
  std::memset(memory, 0, aligned(sizeof(header)));
  std::memcpy(memory, &header, sizeof(header));
}

std::string fault_of_prepared(const AnyMatrix& gallery, Metric metric, const std::uint8_t* memory, Index size) {
  PreparedHeader found{};
  if (size < aligned(sizeof(found))) return "must begin with a header, got " + std::to_string(size) + " bytes";
  std::memcpy(&found, memory, sizeof(found));
  if (std::memcmp(found.magic, kMagic, sizeof(kMagic)) != 0) return "must be a prepared gallery, got other bytes";
  const PreparedHeader wanted = header_of(gallery, metric);
  if (found.version != wanted.version)
    return "must be of version " + std::to_string(wanted.version) + ", got " + std::to_string(found.version);
  if (found.rows != wanted.rows || found.columns != wanted.columns)
    return "must be of a gallery of shape " + shape_text(wanted.rows, wanted.columns) + ", got " +
           shape_text(found.rows, found.columns);
  if (found.dtype != wanted.dtype)
    return std::string("must be of a gallery of ") + name_of_dtype(wanted.dtype) + ", got " +
           name_of_dtype(found.dtype);
  if (found.metric != wanted.metric)
    return std::string("must be for the metric ") + name_of_metric(wanted.metric) + ", got " +
           name_of_metric(found.metric);
  if (found.size != wanted.size || size != wanted.size)
    return "must have " + std::to_string(wanted.size) + " bytes, got " + std::to_string(size);
  if (found.fingerprint != wanted.fingerprint) return "must be of this gallery, got that of other rows";
  return {};
}

}  // namespace mmcore
