// Where nodes stand in a list of them, looked up by address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ggml.h"

namespace first_cpp {

using Nodes = std::vector<ggml_tensor *>;  // in graph order

class NodeIndex {
public:
    // Of an address that occurs twice the last place counts: what lies before may be stale pointers of an earlier graph.
    void bind(const Nodes & nodes);

    // -1 for a node that is not in the list, and for null. Inline: a search asks for every source of every node.
    int of(const ggml_tensor * t) const { return t == nullptr ? -1 : table_[slot_of(t)].index; }

private:
    // The slot that holds t, or the free one where it would go.
    size_t slot_of(const ggml_tensor * t) const {
        const size_t mask = table_.size() - 1;
        auto slot = static_cast<size_t>((reinterpret_cast<uintptr_t>(t) >> 4) * 0x9E3779B97F4A7C15ULL >> 32) & mask;
        while (table_[slot].key != nullptr && table_[slot].key != t) {
            slot = (slot + 1) & mask;
        }
        return slot;
    }

    struct Slot {
        const ggml_tensor * key;
        int index;
    };
    std::vector<Slot> table_;  // open addressing, a power of two, at most half full; its memory stays from list to list
};

}  // namespace first_cpp
