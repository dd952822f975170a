// Looks at one graph of a model without computing it: which layers can be skipped, and why others cannot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"
#include "node_index.h"

namespace first_cpp {

struct LayerLayout {
    std::string input;                   // name of the node that enters the layer; empty when not found
    std::string output;                  // name of the node that leaves it; empty when not found
    std::string unskippable;             // why the layer cannot be skipped; empty when it can
    std::string unskippable_keep_cache;  // why it cannot be skipped while its cache is written; empty when it can
    bool cache_is_shared = false;        // another layer reads its cache: it must go on being written
};

// A tensor of the KV cache (or recurrent state) that a layer writes. It lives as long as the llama context.
struct CacheTensor {
    int layer;
    std::string name;
    uintptr_t address;
    size_t n_bytes;
};

struct Layout {
    std::vector<LayerLayout> layers;
    std::vector<CacheTensor> cache;
    size_t n_nodes = 0;
};

class GraphProbe {
public:
    // From now on every node that passes is noted and not computed.
    void begin(int n_layer);
    bool active() const { return n_layer_ > 0; }
    void on_node(ggml_tensor * t);

    // Puts the graph back and returns its layout. Call it right after the evaluation, before another graph is built.
    Layout finish();

private:
    void restore();

    int n_layer_ = 0;
    Nodes nodes_;
    Nodes cleared_;
};

}  // namespace first_cpp
