// Rows of floats as the bytes of a ggml type, by ggml's own quantiser.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace first_cpp {

// Values in a block of a type ("q4_0", "f16", ...). Throws std::invalid_argument for a type that ggml does not have.
int64_t block_size(const std::string & type);

// `rows`: n_rows x n_columns, row-major. Throws std::invalid_argument where the type is unknown, needs an importance
// matrix, or a row is no whole number of its blocks.
std::vector<char> quantize(const std::string & type, const float * rows, int64_t n_rows, int64_t n_columns);

}  // namespace first_cpp
