// Leaves layers out of the graphs that llama.cpp computes, and puts them back afterwards.
//
// Nodes of a chosen layer lose GGML_TENSOR_FLAG_COMPUTE, the flag llama.cpp itself uses to pass over nodes,
// so neither their results nor their KV rows are written; the layer's output becomes a copy of its input.
// The change lasts for one pass over one graph: llama.cpp may reuse the graph or build another at the same
// addresses, and no pointer of ours outlives the pass. Where a decode is one pass, its caller ends it by stop()
// right after the decode; otherwise the patch hears when the last layer is computed, which costs a thread barrier.
#pragma once

#include <string>
#include <vector>

#include "ggml.h"
#include "span.h"

namespace first_cpp {

class GraphPatch {
public:
    // Which layers to leave out whenever started.
    void set_layers(std::vector<bool> left_out);

    // one_pass: the next decode computes one graph (one micro-batch), and stop() follows it.
    void start(bool one_pass);

    // Undoes what is still changed and forgets the graph. Only valid until llama.cpp builds the next graph: call it
    // after a decode, above all after one that failed.
    void stop() noexcept;
    bool active() const { return active_; }

    // Called for every node in graph order, before any node of its group is computed.
    // True when the patch wants to hear once the node is computed.
    bool on_node(ggml_tensor * t);
    void on_computed(const ggml_tensor * t);

    const std::string & error() const { return error_; }
    void clear_error() { error_.clear(); }
    size_t layers_left_out() const { return layers_left_out_; }  // summed over all passes

private:
    void restore() noexcept;
    void fetch_ahead(const ggml_tensor * t);
    void end_layer(int layer, ggml_tensor * out);
    void leave_out(ggml_tensor * out);

    struct Rewritten {
        ggml_tensor * tensor;
        ggml_tensor before;
    };

    std::vector<bool> layers_;
    bool active_ = false;
    bool one_pass_ = false;
    int last_layer_ = -1;  // whose output was seen last in this pass
    ggml_tensor * last_output_ = nullptr;
    std::vector<ggml_tensor *> nodes_;        // since then, that output first
    std::vector<const ggml_tensor *> trail_;  // addresses of the pass before: hints for the cache, never followed
    size_t on_trail_ = 0;
    std::vector<ggml_tensor *> cleared_;
    std::vector<Rewritten> rewritten_;
    SpanFinder finder_;
    Span span_;
    size_t layers_left_out_ = 0;
    std::string error_;
};

}  // namespace first_cpp
