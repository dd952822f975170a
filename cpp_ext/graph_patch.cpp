// Skips layers in the graphs that llama.cpp computes, and puts the graphs back afterwards.
#include "graph_patch.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace first_cpp {

namespace {

// The graph's input that a sum has as a term, null where there is none.
ggml_tensor * find_input(ggml_tensor * sum) {
    while (sum->op == GGML_OP_ADD) {
        ggml_tensor * term = sum->src[1];
        if (ggml_tensor * input = (term->op == GGML_OP_ADD || term->op == GGML_OP_NONE) ? find_input(term) : nullptr) {
            return input;
        }
        sum = sum->src[0];
    }
    return sum->op == GGML_OP_NONE && (sum->flags & GGML_TENSOR_FLAG_INPUT) != 0 ? sum : nullptr;
}

}  // namespace

void GraphPatch::set_outputs(std::vector<std::string> names) {
    stop();
    outputs_ = std::move(names);
    actions_.assign(outputs_.size(), LayerAction::RUN);
}

void GraphPatch::set_actions(std::vector<LayerAction> actions) {
    stop();
    if (actions.size() != outputs_.size()) {
        throw std::invalid_argument("an action for each of " + std::to_string(outputs_.size()) + " layers is needed, got " +
                                    std::to_string(actions.size()));
    }
    actions_ = std::move(actions);
}

void GraphPatch::start() {
    restore();
    active_ = !outputs_.empty();
}

void GraphPatch::stop() noexcept {
    restore();
    active_ = false;
}

bool GraphPatch::is_output(const ggml_tensor * t, size_t layer) const {
    return layer < outputs_.size() && std::strncmp(t->name, outputs_[layer].c_str(), GGML_MAX_NAME) == 0;
}

void GraphPatch::on_node(ggml_tensor * t) {
    nodes_.push_back(t);
    if (is_output(t, next_layer_)) {
        end_layer(next_layer_, t);
    } else if (next_layer_ > 0 && is_output(t, 0)) {
        begin_second_graph();
        end_layer(0, t);
    }
}

// Legal while nothing is changed in the first graph, which may be gone by now.
void GraphPatch::begin_second_graph() {
    check_complete();
    if (!rewritten_.empty() && error_.empty()) {
        error_ = "a graph was computed that had not been put back";
    }
    last_output_ = nullptr;
}

void GraphPatch::check_complete() {
    if (error_.empty() && !nodes_.empty() && next_layer_ < outputs_.size()) {
        error_ = "the graph has no output of layer " + std::to_string(next_layer_) + " (" + outputs_[next_layer_] + ")";
    }
}

void GraphPatch::end_layer(size_t layer, ggml_tensor * out) {
    if (actions_[layer] != LayerAction::RUN) {
        if (ggml_tensor * input = last_output_ == nullptr ? find_input(out) : nullptr) {
            nodes_.insert(nodes_.begin(), input);  // a batch of embeddings enters its first layer as no node of the graph
        }
        planner_.plan(nodes_, last_output_, actions_[layer] == LayerAction::SKIP_KEEP_CACHE, plan_);
        if (plan_.obstacle == nullptr) {
            skip(out);
            ++layers_skipped_;
        } else if (error_.empty()) {
            error_ = "layer " + std::to_string(layer) + " cannot be skipped in this graph: " + plan_.obstacle;
        }
    }
    next_layer_ = layer + 1;
    last_output_ = out;
    nodes_.assign(1, out);
}

void GraphPatch::skip(ggml_tensor * out) {
    const Span & span = plan_.span;
    cleared_.reserve(cleared_.size() + span.work.size());
    rewritten_.reserve(rewritten_.size() + 2);  // before any change: these two may throw
    if (plan_.stopover != nullptr) {
        rewrite(plan_.stopover, span.source, nullptr);
        rewrite(out, plan_.stopover, span.row_ids);
    } else {
        rewrite(out, span.source, span.row_ids);
    }
    for (ggml_tensor * t : span.work) {
        if (t != plan_.stopover) {
            t->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
            cleared_.push_back(t);
        }
    }
}

void GraphPatch::rewrite(ggml_tensor * t, ggml_tensor * from, ggml_tensor * row_ids) {
    rewritten_.push_back(Rewritten{t, *t});
    std::fill(std::begin(t->src), std::end(t->src), nullptr);
    std::memset(t->op_params, 0, sizeof(t->op_params));
    t->src[0] = from;
    t->src[1] = row_ids;
    t->op = row_ids == nullptr ? GGML_OP_CONT : GGML_OP_GET_ROWS;
    if (row_ids == nullptr && t->data == from->data) {
        t->flags &= ~GGML_TENSOR_FLAG_COMPUTE;  // the value is in place already
    }
}

void GraphPatch::restore() noexcept {
    for (auto it = rewritten_.rbegin(); it != rewritten_.rend(); ++it) {
        it->tensor->op = it->before.op;
        it->tensor->flags = it->before.flags;
        std::memcpy(it->tensor->op_params, it->before.op_params, sizeof(it->before.op_params));
        std::memcpy(it->tensor->src, it->before.src, sizeof(it->before.src));
    }
    for (ggml_tensor * t : cleared_) {
        t->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    rewritten_.clear();
    cleared_.clear();
    nodes_.clear();
    next_layer_ = 0;
    last_output_ = nullptr;
}

}  // namespace first_cpp
