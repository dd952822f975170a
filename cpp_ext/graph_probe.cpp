// Looks at one graph of a model without computing it.
#include "graph_probe.h"

#include <unordered_map>
#include <unordered_set>

#include "graph.h"
#include "layer_finder.h"

namespace first_cpp {

namespace {

// Whether weights of a layer are read before what was taken for the first layer's input: then it is not (kimi-k3).
bool runs_before(const Nodes & nodes, const ggml_tensor * input) {
    for (const ggml_tensor * t : nodes) {
        if (t == input) {
            return layer_of_weights(t) >= 0;
        }
        if (!is_alias(t) && layer_of_weights(t) >= 0) {
            return true;
        }
    }
    return false;
}

// Which layer's work, or output, each node is; nodes of no layer are absent.
using LayerOf = std::unordered_map<const ggml_tensor *, int>;

// Work of one layer may be read by that layer alone.
void check_readers(const Nodes & nodes, const LayerOf & layer_of, const std::unordered_set<const ggml_tensor *> & outputs,
                   std::vector<LayerLayout> & layers) {
    for (const ggml_tensor * t : nodes) {
        const auto reader = layer_of.find(t);
        for (const ggml_tensor * source : t->src) {
            const auto read = source == nullptr || outputs.count(source) != 0 ? layer_of.end() : layer_of.find(source);
            if (read != layer_of.end() && (reader == layer_of.end() || reader->second != read->second)) {
                LayerLayout & layer = layers[static_cast<size_t>(read->second)];
                layer.unskippable = layer.unskippable_keep_cache = "a node after it reads inside it";
            }
        }
    }
}

// Another layer may read what a layer writes to its cache (gemma3n, gemma4). Nodes outside all layers that
// read a cache (a cast of K, say) hand its layer on to their readers; those after `last`, the last output that was
// found, may be a layer that was not.
void find_cache_readers(const Nodes & nodes, const ggml_tensor * last, const LayerOf & layer_of,
                        const std::vector<CacheTensor> & cache, std::vector<LayerLayout> & layers) {
    std::unordered_map<uintptr_t, int> writer;
    for (const CacheTensor & c : cache) {
        writer.emplace(c.address, c.layer);
    }
    std::unordered_map<const ggml_tensor *, int> handed_on;
    bool after_last = false;
    for (const ggml_tensor * t : nodes) {
        for (const ggml_tensor * source : t->src) {
            if (source == nullptr) {
                continue;
            }
            int from = -1;
            if (const auto on = handed_on.find(source); on != handed_on.end()) {
                from = on->second;
            } else if (const auto w = writer.find(reinterpret_cast<uintptr_t>(owner(source)->data)); w != writer.end()) {
                from = w->second;
            }
            if (from < 0) {
                continue;
            }
            const auto reader = layer_of.find(t);
            if (after_last || (reader != layer_of.end() && reader->second != from)) {
                layers[static_cast<size_t>(from)].cache_is_shared = true;
            } else if (reader == layer_of.end()) {
                handed_on.emplace(t, from);
            }
        }
        after_last = after_last || t == last;
    }
}

LayerLayout describe(const ggml_tensor * input, const ggml_tensor * output, const SkipPlan & plan,
                     const SkipPlan & plan_keep_cache) {
    LayerLayout layer;
    layer.input = input == nullptr ? "" : input->name;
    layer.output = output->name;
    layer.unskippable = plan.obstacle == nullptr ? "" : plan.obstacle;
    layer.unskippable_keep_cache = plan_keep_cache.obstacle == nullptr ? "" : plan_keep_cache.obstacle;
    return layer;
}

}  // namespace

void GraphProbe::begin(int n_layer) {
    n_layer_ = n_layer;
    nodes_.clear();
    cleared_.clear();
}

void GraphProbe::on_node(ggml_tensor * t) {
    nodes_.push_back(t);
    if (is_computed(t)) {
        cleared_.push_back(t);
        t->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    }
}

void GraphProbe::restore() {
    for (ggml_tensor * t : cleared_) {
        t->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    cleared_.clear();
}

Layout GraphProbe::finish() {
    restore();
    Layout layout;
    layout.n_nodes = nodes_.size();
    layout.layers.resize(static_cast<size_t>(n_layer_));

    LayerOf layer_of;
    std::unordered_set<const ggml_tensor *> outputs;
    LayerFinder finder(nodes_, n_layer_);
    SkipPlan plan;
    SkipPlan plan_keep_cache;
    for (int il = 0; il < n_layer_; ++il) {
        LayerLayout & layer = layout.layers[static_cast<size_t>(il)];
        const ggml_tensor * before = finder.output();
        if (!finder.next(plan, plan_keep_cache)) {
            layer.unskippable = layer.unskippable_keep_cache = "the graph names no output of it or of the layer before it";
            continue;
        }
        const ggml_tensor * input = plan.span.residual == nullptr ? before : plan.span.residual;
        layer = describe(input, finder.output(), plan, plan_keep_cache);
        if (il == 0 && runs_before(nodes_, plan.span.residual)) {
            layer.unskippable = layer.unskippable_keep_cache = "it does not begin with its input";
        }
        outputs.insert(finder.output());
        layer_of.emplace(finder.output(), il);
        for (const ggml_tensor * t : plan.span.work) {
            layer_of.emplace(t, il);
            if (writes_cache(t)) {
                const ggml_tensor * c = owner(t);
                layout.cache.push_back(CacheTensor{il, c->name, reinterpret_cast<uintptr_t>(c->data), ggml_nbytes(c)});
            }
        }
    }
    check_readers(nodes_, layer_of, outputs, layout.layers);
    find_cache_readers(nodes_, finder.output(), layer_of, layout.cache, layout.layers);
    n_layer_ = 0;
    nodes_.clear();
    return layout;
}

}  // namespace first_cpp
