// Gives memory of the KV cache back to the system, page by page.
#pragma once

#include <cstddef>
#include <cstdint>

namespace first_cpp {

// Gives back the whole pages inside [address, address + n_bytes) and returns how many bytes those are. The range
// stays usable; what it held is lost. 0 where the system refuses or has no such call. The memory must be private
// and anonymous (llama.cpp's CPU KV buffers are).
size_t release_pages(uintptr_t address, size_t n_bytes);

}  // namespace first_cpp
