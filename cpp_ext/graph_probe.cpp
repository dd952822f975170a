// Looks at one graph of a model without computing it.
#include "graph_probe.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "graph.h"
#include "span.h"

namespace first_cpp {

namespace {

using Nodes = std::vector<ggml_tensor *>;

// The il of "l_out-<il>", the name that llama.cpp's models give to a layer's output; -1 for any other node.
int named_output(const ggml_tensor * t) { return number_after("l_out-", t->name, '\0'); }

// The il of a layer whose weights a node reads, "blk.<il>. ..." in every GGUF; -1 when it reads none.
int layer_of_weights(const ggml_tensor * t) {
    for (const ggml_tensor * source : t->src) {
        if (source != nullptr && owner(source)->op == GGML_OP_NONE) {
            const int layer = number_after("blk.", owner(source)->name, '.');
            if (layer >= 0) {
                return layer;
            }
        }
    }
    return -1;
}

// Where each layer's weights are read in a graph: indices of the first and the last such node, -1 for none.
struct Extent {
    int first = -1;
    int last = -1;
};

std::vector<Extent> find_extents(const Nodes & nodes, int n_layer) {
    std::vector<Extent> extents(static_cast<size_t>(n_layer));
    for (size_t i = 0; i < nodes.size(); ++i) {
        const int layer = layer_of_weights(nodes[i]);
        if (layer >= 0 && layer < n_layer) {
            Extent & extent = extents[static_cast<size_t>(layer)];
            extent.first = extent.first < 0 ? static_cast<int>(i) : extent.first;
            extent.last = static_cast<int>(i);
        }
    }
    return extents;
}

// A name by which the node can be told in every graph of the model.
bool has_name_of_its_own(const Nodes & nodes, const ggml_tensor * t) {
    if (t->name[0] == '\0' || std::strncmp(t->name, "node_", 5) == 0) {
        return false;  // ggml numbers the nodes that have no name
    }
    return std::none_of(nodes.begin(), nodes.end(), [t](const ggml_tensor * other) {
        return other != t && std::strncmp(other->name, t->name, GGML_MAX_NAME) == 0;
    });
}

// Finds the layers of one graph, one after the other.
class LayerFinder {
public:
    LayerFinder(const Nodes & nodes, int n_layer)
        : nodes_(nodes), extents_(find_extents(nodes, n_layer)), named_(extents_.size(), -1) {
        for (size_t i = 0; i < nodes.size(); ++i) {
            const int layer = named_output(nodes[i]);
            if (layer >= 0 && layer < n_layer) {
                named_[static_cast<size_t>(layer)] = static_cast<int>(i);  // the last node of a name counts
            }
        }
    }

    // The span of the next layer, with what runs in it left aside for keep_cache. False when it has no output.
    bool next(Span & span, Span & keeping) {
        const size_t layer = layer_++;
        if (lost_) {
            return false;
        }
        if (try_output(named_[layer], span) && span.trouble == nullptr) {
            take(named_[layer], keeping);
            return true;
        }
        const int found = find_output(layer, span);
        const int output = found >= 0 ? found : named_[layer];
        if (!try_output(output, span)) {
            lost_ = true;
            return false;
        }
        take(output, keeping);
        return true;
    }

    const ggml_tensor * output() const { return previous_; }

private:
    bool try_output(int output, Span & span) {
        if (output <= begin_ && layer_ > 1) {
            return false;
        }
        if (output < 0) {
            return false;
        }
        within_.assign(nodes_.begin() + begin_, nodes_.begin() + output + 1);
        finder_.find(within_, previous_, /*keep_cache=*/false, span);
        return true;
    }

    // The last sum after the layer's weights and before the next layer's that the layer's input takes part in.
    int find_output(size_t layer, Span & span) {
        const int n = static_cast<int>(nodes_.size());
        int end = n;
        for (size_t next = layer + 1; next < extents_.size() && end == n; ++next) {
            end = extents_[next].first >= 0 ? extents_[next].first : n;
        }
        for (int i = end - 1; i > std::max(begin_, extents_[layer].last) && extents_[layer].last >= 0; --i) {
            const ggml_tensor * t = nodes_[static_cast<size_t>(i)];
            if (t->op == GGML_OP_ADD && has_name_of_its_own(nodes_, t) && try_output(i, span) && span.trouble == nullptr) {
                return i;
            }
        }
        return -1;
    }

    void take(int output, Span & keeping) {
        finder_.find(within_, previous_, /*keep_cache=*/true, keeping);
        begin_ = output;
        previous_ = nodes_[static_cast<size_t>(output)];
    }

    const Nodes & nodes_;
    std::vector<Extent> extents_;
    std::vector<int> named_;
    size_t layer_ = 0;
    int begin_ = 0;
    bool lost_ = false;
    const ggml_tensor * previous_ = nullptr;
    Nodes within_;
    SpanFinder finder_;
};

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
                layer.trouble = layer.trouble_keeping = "a node after it reads inside it";
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
    Span span;
    Span keeping;
    for (int il = 0; il < n_layer_; ++il) {
        LayerLayout & layer = layout.layers[static_cast<size_t>(il)];
        const ggml_tensor * before = finder.output();
        if (!finder.next(span, keeping)) {
            layer.trouble = layer.trouble_keeping = "the graph names no output of it or of the layer before it";
            continue;
        }
        layer_of.emplace(finder.output(), il);
        outputs.insert(finder.output());
        layer.output = finder.output()->name;
        const ggml_tensor * input = span.residual == nullptr ? before : span.residual;
        layer.input = input == nullptr ? "" : input->name;
        layer.trouble = span.trouble == nullptr ? "" : span.trouble;
        layer.trouble_keeping = keeping.trouble == nullptr ? "" : keeping.trouble;
        if (il == 0 && runs_before(nodes_, span.residual)) {
            layer.trouble = layer.trouble_keeping = "it does not begin with its input";
        }
        if (span.stopover != nullptr) {
            layer_of.emplace(span.stopover, il);
        }
        for (const ggml_tensor * t : span.work) {
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
