// Where nodes stand in a list of them, looked up by address.
#include "node_index.h"

namespace first_cpp {

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

}  // namespace first_cpp
