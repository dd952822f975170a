// One case for the GGUF reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace first_cpp::testing {

// Reads the file at `path` and every key, value and tensor in it, as the bindings do. False when it is refused as no GGUF.
// Throws when what the reader says does not hold together.
bool run_gguf_case(const std::string & path);

}  // namespace first_cpp::testing
