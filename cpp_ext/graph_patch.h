// Leaves layers out of the graphs that llama.cpp computes, and puts them back afterwards.
//
// Nodes of a chosen layer lose GGML_TENSOR_FLAG_COMPUTE, the flag llama.cpp itself uses to pass over nodes,
// so neither their results nor their KV rows are written; the layer's output becomes a copy of its input.
// The change lasts for one graph, that of one micro-batch: llama.cpp may reuse the graph or build another at the
// same addresses, and no pointer of ours outlives the evaluation. The caller puts everything back by stop() right
// after it; to hear of the last layer instead would cost a thread barrier.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"
#include "span.h"

namespace first_cpp {

// What becomes of a layer.
enum class Fate : uint8_t {
    RUN,
    LEAVE_OUT,
    LEAVE_OUT_KEEP_CACHE,  // its KV cache or recurrent state is written all the same
};

class GraphPatch {
public:
    // The names of the nodes that the layers put out, in the order of the layers.
    void set_outputs(std::vector<std::string> names);

    // What to do with each layer whenever started.
    void set_fates(std::vector<Fate> fates);

    // The next decode computes one graph, and stop() follows it.
    void start();

    // Undoes what is still changed and forgets the graph. Only valid until llama.cpp builds the next graph: call it
    // after a decode, above all after one that failed.
    void stop() noexcept;
    bool active() const { return active_; }

    // Called for every node in graph order, before any node of its group is computed.
    void on_node(ggml_tensor * t);

    // Notes an error if a decode since start() passed over the output of a layer. Between the decode and stop().
    void check_complete();
    const std::string & error() const { return error_; }
    void clear_error() { error_.clear(); }
    size_t layers_left_out() const { return layers_left_out_; }  // summed over all graphs

private:
    void restore() noexcept;
    void fetch_ahead(const ggml_tensor * t);
    bool is_output(const ggml_tensor * t, size_t layer) const;
    void end_layer(size_t layer, ggml_tensor * out);
    void leave_out(ggml_tensor * out);
    void rewrite(ggml_tensor * t, ggml_tensor * from, ggml_tensor * row_ids);

    struct Rewritten {
        ggml_tensor * tensor;
        ggml_tensor before;
    };

    std::vector<std::string> outputs_;
    std::vector<Fate> fates_;
    bool active_ = false;
    size_t next_layer_ = 0;  // whose output comes next in this graph
    ggml_tensor * last_output_ = nullptr;
    std::vector<ggml_tensor *> nodes_;        // since then, that output first
    std::vector<const ggml_tensor *> trail_;  // addresses of the graph before: hints for the cache, never followed
    size_t on_trail_ = 0;
    std::vector<ggml_tensor *> cleared_;
    std::vector<Rewritten> rewritten_;
    SpanFinder finder_;
    Span span_;
    size_t layers_left_out_ = 0;
    std::string error_;
};

}  // namespace first_cpp
