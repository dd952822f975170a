// Finds the layers of one graph, one after the other: where each ends, and how it would be skipped.
#pragma once

#include <cstddef>
#include <vector>

#include "ggml.h"
#include "node_index.h"
#include "skip_plan.h"

namespace first_cpp {

// The il of a layer whose weights a node reads, "blk.<il>. ..." in every GGUF; -1 when it reads none.
int layer_of_weights(const ggml_tensor * t);

// The nodes must outlive it.
class LayerFinder {
public:
    LayerFinder(const Nodes & nodes, int n_layer);

    // How to skip the next layer, without its cache writes and with them. False when it has no output, as every layer
    // after it then.
    bool next(SkipPlan & plan, SkipPlan & plan_keep_cache);

    // Of the last layer that was found; null before the first.
    const ggml_tensor * output() const { return previous_; }

private:
    // Where a layer's weights are read: indices of the first and the last such node, -1 for none.
    struct Extent {
        int first = -1;
        int last = -1;
    };

    void find_extents();
    void find_named_outputs();
    bool has_unique_name(const ggml_tensor * t) const;
    bool try_output(int output, SkipPlan & plan);
    int find_output(size_t layer, SkipPlan & plan);
    void take(int output, SkipPlan & plan_keep_cache);

    const Nodes & nodes_;
    std::vector<Extent> extents_;  // per layer
    std::vector<int> named_;       // per layer: the node "l_out-<il>", -1 for none
    size_t layer_ = 0;
    int begin_ = 0;
    bool lost_ = false;
    const ggml_tensor * previous_ = nullptr;
    Nodes within_;  // from the output before to the one tried
    SkipPlanner planner_;
};

}  // namespace first_cpp
