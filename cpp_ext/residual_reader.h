// Reads the residual stream while llama.cpp computes: the hidden state entering each layer, row by row.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"

namespace first_cpp {

// Receives hidden states. Point p is what enters layer p; point n_layer is what leaves the last layer.
class ResidualSink {
public:
    virtual ~ResidualSink() = default;
    // rows: n_rows x n_embd float32, row-major; the rows of one point arrive in token order.
    virtual void take(int point, const float * rows, int64_t n_rows, int64_t n_embd) = 0;
};

class ResidualReader {
public:
    // Reads the graph nodes of these names, in graph order, once a pass, until stop(). No names: reads nothing.
    void read(ResidualSink & sink, std::vector<std::string> names);
    void stop() noexcept { sink_ = nullptr; }
    bool active() const { return sink_ != nullptr; }

    bool on_node(const ggml_tensor * t) const;
    void on_computed(const ggml_tensor * t);

private:
    ResidualSink * sink_ = nullptr;
    std::vector<std::string> names_;
    size_t next_ = 0;
    std::vector<float> copy_;
};

}  // namespace first_cpp
