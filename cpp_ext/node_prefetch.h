// Asks the CPU for graph nodes a little before llama.cpp comes to them.
#pragma once

#include <cstddef>
#include <vector>

#include "ggml.h"

namespace first_cpp {

// Streaming the weights has pushed the graph's nodes out of the caches by the next token; a reused graph has them where
// they were. Addresses of the graph before are hints to the cache and never followed: a stale one costs nothing.
class NodePrefetch {
public:
    void begin_graph() { next_ = 0; }
    void on_node(const ggml_tensor * t);

private:
    std::vector<const ggml_tensor *> trail_;  // nodes of the graph before, in order
    size_t next_ = 0;
};

}  // namespace first_cpp
