// Rows of floats as the bytes of a ggml type, by ggml's own quantiser.
#include "quantize.h"

#include <stdexcept>

#include "ggml.h"

namespace first_cpp {

namespace {

ggml_type type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (const char * known = ggml_type_name(type); known != nullptr && name == known && ggml_blck_size(type) > 0) {
            return type;
        }
    }
    throw std::invalid_argument("ggml has no type " + name);
}

}  // namespace

int64_t block_size(const std::string & type) { return ggml_blck_size(type_named(type)); }

std::vector<char> quantize(const std::string & type_name, const float * rows, int64_t n_rows, int64_t n_columns) {
    const ggml_type type = type_named(type_name);
    const bool known = ggml_is_quantized(type) || type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
    if (!known || ggml_quantize_requires_imatrix(type) || n_columns % ggml_blck_size(type) != 0) {
        throw std::invalid_argument("rows of " + std::to_string(n_columns) + " values cannot be quantised as " + type_name);
    }
    std::vector<char> out(ggml_row_size(type, n_columns) * static_cast<size_t>(n_rows));
    ggml_quantize_chunk(type, rows, out.data(), 0, n_rows, n_columns, nullptr);
    return out;
}

}  // namespace first_cpp
