// Where nodes stand in a list of them, looked up by address.
#include "node_index.h"

#include <cstdint>

namespace first_cpp {

namespace {

size_t hash(const ggml_tensor * t) {
    return static_cast<size_t>((reinterpret_cast<uintptr_t>(t) >> 4) * 0x9E3779B97F4A7C15ULL >> 32);
}

}  // namespace

void NodeIndex::bind(const Nodes & nodes) {
    size_t size = 64;
    while (size < nodes.size() * 2) {
        size *= 2;
    }
    table_.assign(size, Slot{nullptr, -1});
    for (size_t i = 0; i < nodes.size(); ++i) {
        table_[slot_of(nodes[i])] = Slot{nodes[i], static_cast<int>(i)};
    }
}

int NodeIndex::of(const ggml_tensor * t) const { return t == nullptr ? -1 : table_[slot_of(t)].index; }

// The slot that holds t, or the free one where it would go.
size_t NodeIndex::slot_of(const ggml_tensor * t) const {
    const size_t mask = table_.size() - 1;
    size_t slot = hash(t) & mask;
    while (table_[slot].key != nullptr && table_[slot].key != t) {
        slot = (slot + 1) & mask;
    }
    return slot;
}

}  // namespace first_cpp
