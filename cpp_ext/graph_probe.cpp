// Looks at one graph of a model without computing it.
#include "graph_probe.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "graph.h"
#include "span.h"

namespace first_cpp {

namespace {

using Nodes = std::vector<ggml_tensor *>;

bool is_cache(const ggml_tensor * t) { return std::strncmp(t->name, "cache", 5) == 0; }

bool writes_cache(const ggml_tensor * t) { return (t->op == GGML_OP_SET_ROWS || t->op == GGML_OP_CPY) && is_cache(owner(t)); }

// Index of every layer's output; -1 where the graph has none. The last node of a name counts.
std::vector<int> find_outputs(const Nodes & nodes, int n_layer) {
    std::vector<int> outputs(static_cast<size_t>(n_layer), -1);
    for (size_t i = 0; i < nodes.size(); ++i) {
        const int layer = layer_of_output(nodes[i]);
        if (layer >= 0 && layer < n_layer) {
            outputs[static_cast<size_t>(layer)] = static_cast<int>(i);
        }
    }
    return outputs;
}

// Which layer's work each node is; nodes of no layer are absent.
using LayerOf = std::unordered_map<const ggml_tensor *, int>;

// Work of one layer may be read by that layer alone.
void check_readers(const Nodes & nodes, const LayerOf & layer_of, std::vector<LayerLayout> & layers) {
    for (const ggml_tensor * t : nodes) {
        const auto reader = layer_of.find(t);
        for (const ggml_tensor * source : t->src) {
            const auto read = source == nullptr ? layer_of.end() : layer_of.find(source);
            if (read != layer_of.end() && layer_of_output(source) != read->second &&
                (reader == layer_of.end() || reader->second != read->second)) {
                layers[static_cast<size_t>(read->second)].trouble = "a node after it reads inside it";
            }
        }
    }
}

// A layer whose cache another layer reads must write it (gemma3n, gemma4). Nodes outside all layers that
// read a cache (a cast of K, say) hand its layer on to their readers.
void check_cache_readers(const Nodes & nodes, const LayerOf & layer_of, const std::vector<CacheTensor> & cache,
                         std::vector<LayerLayout> & layers) {
    std::unordered_map<uintptr_t, int> writer;
    for (const CacheTensor & c : cache) {
        writer.emplace(c.address, c.layer);
    }
    std::unordered_map<const ggml_tensor *, int> handed_on;
    for (const ggml_tensor * t : nodes) {
        for (const ggml_tensor * source : t->src) {
            if (source == nullptr) {
                continue;
            }
            int from = -1;
            const auto on = handed_on.find(source);
            if (on != handed_on.end()) {
                from = on->second;
            } else if (is_cache(owner(source))) {
                const auto w = writer.find(reinterpret_cast<uintptr_t>(owner(source)->data));
                from = w == writer.end() ? -1 : w->second;
            }
            if (from < 0) {
                continue;
            }
            const auto reader = layer_of.find(t);
            if (reader == layer_of.end()) {
                handed_on.emplace(t, from);
            } else if (reader->second != from) {
                layers[static_cast<size_t>(from)].trouble = "its KV cache is read by another layer";
            }
        }
    }
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
    const std::vector<int> outputs = find_outputs(nodes_, n_layer_);

    LayerOf layer_of;
    SpanFinder finder;
    Span span;
    int begin = 0;
    ggml_tensor * previous = nullptr;
    for (int layer = 0; layer < n_layer_; ++layer) {
        LayerLayout & found = layout.layers[static_cast<size_t>(layer)];
        const int end = outputs[static_cast<size_t>(layer)];
        if (end < begin || (layer > 0 && previous == nullptr)) {
            found.trouble = "the graph names no output of it or of the layer before it";
            begin = end < begin ? begin : end;
            previous = end < begin ? nullptr : nodes_[static_cast<size_t>(end)];
            continue;
        }
        const Nodes nodes(nodes_.begin() + begin, nodes_.begin() + end + 1);
        finder.find(nodes, previous, span);
        if (span.residual != nullptr) {
            found.input = span.residual->name;
        }
        if (span.trouble != nullptr) {
            found.trouble = span.trouble;
        }
        for (const ggml_tensor * t : span.work) {
            layer_of.emplace(t, layer);
            if (writes_cache(t)) {
                const ggml_tensor * c = owner(t);
                layout.cache.push_back(CacheTensor{layer, c->name, reinterpret_cast<uintptr_t>(c->data), ggml_nbytes(c)});
            }
        }
        layer_of.emplace(nodes.back(), layer);
        begin = end;
        previous = nodes.back();
    }
    check_readers(nodes_, layer_of, layout.layers);
    check_cache_readers(nodes_, layer_of, layout.cache, layout.layers);
    n_layer_ = 0;
    nodes_.clear();
    return layout;
}

}  // namespace first_cpp
