// Skips layers in the graphs that llama.cpp computes, and puts the graphs back afterwards.
//
// Nodes of a skipped layer lose GGML_TENSOR_FLAG_COMPUTE, the flag llama.cpp itself uses to pass over nodes, so neither
// their results nor their KV rows are written; the layer's output becomes a copy of its input. The change lasts for one
// graph, that of one micro-batch: llama.cpp may reuse the graph or build another at the same addresses, and no pointer
// of ours that is followed outlives the evaluation. The caller puts everything back by stop() or start() right after it;
// to wait for the last layer's result instead would cost a thread barrier. README.md draws the protocol.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"
#include "node_index.h"
#include "skip_plan.h"

namespace first_cpp {

enum class LayerAction : uint8_t {
    RUN,
    SKIP,
    SKIP_KEEP_CACHE,  // skipped, but its KV cache or recurrent state is written all the same
};

class GraphPatch {
public:
    // The names of the nodes that the layers put out, in the order of the layers. All layers run from now on.
    void set_outputs(std::vector<std::string> names);

    // What to do with each layer whenever started. Throws std::invalid_argument unless there is one for each output.
    void set_actions(std::vector<LayerAction> actions);

    // Puts back the graph of the evaluation before. The next evaluation computes one graph; stop() or start() follows it.
    void start();

    // Puts the graph back and forgets it. Only valid until llama.cpp builds the next graph: call it after an
    // evaluation, above all after one that failed.
    void stop() noexcept;
    bool active() const { return active_; }

    // Called for every node in graph order, before any node of its group is computed.
    void on_node(ggml_tensor * t);

    // Notes an error if the evaluation since start() passed over the output of a layer. Between the evaluation and stop().
    void check_complete();
    const std::string & error() const { return error_; }
    void clear_error() { error_.clear(); }
    size_t layers_skipped() const { return layers_skipped_; }  // summed over all graphs

private:
    void restore() noexcept;
    bool is_output(const ggml_tensor * t, size_t layer) const;
    void begin_second_graph();
    void end_layer(size_t layer, ggml_tensor * out);
    void skip(ggml_tensor * out);
    void rewrite(ggml_tensor * t, ggml_tensor * from, ggml_tensor * row_ids);

    struct Rewritten {
        ggml_tensor * tensor;
        ggml_tensor before;
    };

    std::vector<std::string> outputs_;
    std::vector<LayerAction> actions_;
    bool active_ = false;
    size_t next_layer_ = 0;  // whose output comes next in this graph
    ggml_tensor * last_output_ = nullptr;
    Nodes nodes_;  // since then, that output first
    Nodes cleared_;
    std::vector<Rewritten> rewritten_;
    SkipPlanner planner_;
    SkipPlan plan_;
    size_t layers_skipped_ = 0;
    std::string error_;
};

}  // namespace first_cpp
