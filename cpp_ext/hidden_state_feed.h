// Hands over hidden states while llama.cpp computes: the residual stream entering each layer, row by row.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"

namespace first_cpp {

// Reads hidden states. Point p is what enters layer p; point n_layer is what leaves the last layer.
class HiddenStateReader {
public:
    virtual ~HiddenStateReader() = default;
    // rows: n_rows x n_embd float32, row-major; the rows of one point arrive in token order.
    virtual void read(int point, const float * rows, int64_t n_rows, int64_t n_embd) = 0;
};

class HiddenStateFeed {
public:
    // Feeds `reader` the graph nodes of these names, in graph order, once a graph, until stop(). No names: nothing.
    // The reader must live until then.
    void start(HiddenStateReader & reader, std::vector<std::string> names);
    void stop() noexcept { reader_ = nullptr; }
    bool active() const { return reader_ != nullptr; }

    // While active: whether t is the node that comes next, so that llama.cpp computes it before any later one.
    bool on_node(const ggml_tensor * t) const;

    // While active: hands t over if it is that node. Throws std::runtime_error where it is not contiguous float32.
    void on_computed(const ggml_tensor * t);

private:
    HiddenStateReader * reader_ = nullptr;
    std::vector<std::string> names_;
    size_t next_ = 0;
    std::vector<float> copy_;
};

}  // namespace first_cpp
