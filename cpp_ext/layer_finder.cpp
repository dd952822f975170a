// Finds the layers of one graph, one after the other.
#include "layer_finder.h"

#include <algorithm>
#include <cstring>

#include "graph.h"

namespace first_cpp {

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

LayerFinder::LayerFinder(const Nodes & nodes, int n_layer)
    : nodes_(nodes), extents_(static_cast<size_t>(n_layer)), named_(extents_.size(), -1) {
    find_extents();
    find_named_outputs();
}

void LayerFinder::find_extents() {
    for (size_t i = 0; i < nodes_.size(); ++i) {
        const int layer = layer_of_weights(nodes_[i]);
        if (layer >= 0 && static_cast<size_t>(layer) < extents_.size()) {
            Extent & extent = extents_[static_cast<size_t>(layer)];
            extent.first = extent.first < 0 ? static_cast<int>(i) : extent.first;
            extent.last = static_cast<int>(i);
        }
    }
}

// "l_out-<il>" is what llama.cpp's models mostly call a layer's output.
void LayerFinder::find_named_outputs() {
    for (size_t i = 0; i < nodes_.size(); ++i) {
        const int layer = number_after("l_out-", nodes_[i]->name, '\0');
        if (layer >= 0 && static_cast<size_t>(layer) < named_.size()) {
            named_[static_cast<size_t>(layer)] = static_cast<int>(i);  // the last node of a name counts
        }
    }
}

bool LayerFinder::next(SkipPlan & plan, SkipPlan & plan_keep_cache) {
    const size_t layer = layer_++;
    if (lost_) {
        return false;
    }
    int output = named_[layer];
    if (!try_output(output, plan) || plan.obstacle != nullptr) {
        const int found = find_output(layer, plan);
        output = found >= 0 ? found : named_[layer];
        if (!try_output(output, plan)) {
            lost_ = true;
            return false;
        }
    }
    take(output, plan_keep_cache);
    return true;
}

// False where no layer can end.
bool LayerFinder::try_output(int output, SkipPlan & plan) {
    if (output < 0 || (output <= begin_ && previous_ != nullptr)) {
        return false;
    }
    within_.assign(nodes_.begin() + begin_, nodes_.begin() + output + 1);
    planner_.plan(within_, previous_, /*keep_cache=*/false, plan);
    return true;
}

// The last sum after the layer's weights and before the next layer's that the layer's input takes part in.
int LayerFinder::find_output(size_t layer, SkipPlan & plan) {
    if (extents_[layer].last < 0) {
        return -1;
    }
    int end = static_cast<int>(nodes_.size());
    for (size_t next = layer + 1; next < extents_.size(); ++next) {
        if (extents_[next].first >= 0) {
            end = extents_[next].first;
            break;
        }
    }
    for (int i = end - 1; i > std::max(begin_, extents_[layer].last); --i) {
        const ggml_tensor * t = nodes_[static_cast<size_t>(i)];
        if (t->op == GGML_OP_ADD && has_unique_name(t) && try_output(i, plan) && plan.obstacle == nullptr) {
            return i;
        }
    }
    return -1;
}

// A name that finds the node in every graph of the model.
bool LayerFinder::has_unique_name(const ggml_tensor * t) const {
    if (t->name[0] == '\0' || std::strncmp(t->name, "node_", 5) == 0) {
        return false;  // ggml numbers the nodes that have no name
    }
    return std::none_of(nodes_.begin(), nodes_.end(), [t](const ggml_tensor * other) {
        return other != t && std::strncmp(other->name, t->name, GGML_MAX_NAME) == 0;
    });
}

void LayerFinder::take(int output, SkipPlan & plan_keep_cache) {
    planner_.plan(within_, previous_, /*keep_cache=*/true, plan_keep_cache);
    begin_ = output;
    previous_ = nodes_[static_cast<size_t>(output)];
}

}  // namespace first_cpp
