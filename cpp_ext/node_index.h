// Where nodes stand in a list of them, looked up by address.
#pragma once

#include <vector>

#include "ggml.h"

namespace first_cpp {

using Nodes = std::vector<ggml_tensor *>;  // in graph order

class NodeIndex {
public:
    // Of an address that occurs twice the last place counts: what lies before may be stale pointers of an earlier graph.
    void bind(const Nodes & nodes);

    // -1 for a node that is not in the list, and for null.
    int of(const ggml_tensor * t) const;

private:
    size_t slot_of(const ggml_tensor * t) const;

    struct Slot {
        const ggml_tensor * key;
        int index;
    };
    std::vector<Slot> table_;  // open addressing, a power of two, at most half full; its memory stays from list to list
};

}  // namespace first_cpp
