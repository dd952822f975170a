// Asks the CPU for graph nodes a little before llama.cpp comes to them.
#include "node_prefetch.h"

#include <cstdint>

namespace first_cpp {

namespace {

void prefetch(uintptr_t address) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(reinterpret_cast<const void *>(address));
#else
    static_cast<void>(address);
#endif
}

}  // namespace

void NodePrefetch::on_node(const ggml_tensor * t) {
    constexpr size_t ahead = 8;
    constexpr uintptr_t cache_line = 64;
    if (next_ == trail_.size()) {
        trail_.push_back(t);
    }
    trail_[next_] = t;
    if (next_ + ahead < trail_.size()) {
        const auto node = reinterpret_cast<uintptr_t>(trail_[next_ + ahead]);
        for (uintptr_t line = 0; line < sizeof(ggml_tensor); line += cache_line) {
            prefetch(node + line);
        }
    }
    ++next_;
}

}  // namespace first_cpp
