// Looks at one graph of a model without computing it: which layers can be left out, and why others cannot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"

namespace first_cpp {

struct LayerLayout {
    std::string input;             // name of the node that enters the layer; empty when not found
    std::string output;            // name of the node that leaves it; empty when not found
    std::string trouble;           // why the layer cannot be left out; empty when it can
    std::string trouble_keeping;   // the same for leaving it out while its cache is written
    bool cache_is_shared = false;  // another layer reads its cache: it must go on being written
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

    // Puts the graph back and says what it is. Call it right after the decode, before another graph is built.
    Layout finish();

private:
    void restore();

    int n_layer_ = 0;
    std::vector<ggml_tensor *> nodes_;
    std::vector<ggml_tensor *> cleared_;
};

}  // namespace first_cpp
