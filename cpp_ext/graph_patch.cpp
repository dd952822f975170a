// Leaves layers out of the graphs that llama.cpp computes, and puts them back afterwards.
#include "graph_patch.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "graph.h"

#if defined(__GNUC__) || defined(__clang__)
#define FIRST_CPP_PREFETCH(p) __builtin_prefetch(p)
#else
#define FIRST_CPP_PREFETCH(p) static_cast<void>(p)
#endif

namespace first_cpp {

void GraphPatch::set_layers(std::vector<bool> left_out) {
    stop();
    layers_ = std::move(left_out);
}

void GraphPatch::start(bool one_pass) {
    restore();
    active_ = true;
    one_pass_ = one_pass;
}

void GraphPatch::stop() noexcept {
    restore();
    active_ = false;
}

// Streaming the weights has pushed the graph's nodes out of the caches; a reused graph has them where they were.
void GraphPatch::fetch_ahead(const ggml_tensor * t) {
    constexpr size_t ahead = 8;
    if (on_trail_ == trail_.size()) {
        trail_.push_back(t);
    }
    trail_[on_trail_] = t;
    if (on_trail_ + ahead < trail_.size()) {
        const auto next = reinterpret_cast<uintptr_t>(trail_[on_trail_ + ahead]);
        for (uintptr_t line = 0; line < sizeof(ggml_tensor); line += 64) {
            FIRST_CPP_PREFETCH(reinterpret_cast<const void *>(next + line));
        }
    }
    ++on_trail_;
}

bool GraphPatch::on_node(ggml_tensor * t) {
    fetch_ahead(t);
    nodes_.push_back(t);
    const int layer = layer_of_output(t);
    if (layer < 0 || layer >= static_cast<int>(layers_.size())) {
        return false;
    }
    end_layer(layer, t);
    return !one_pass_ && !rewritten_.empty() && layer + 1 == static_cast<int>(layers_.size());
}

void GraphPatch::end_layer(int layer, ggml_tensor * out) {
    if (layer == 0) {
        last_output_ = nullptr;  // a new pass
        if (!rewritten_.empty() && error_.empty()) {
            error_ = "a graph was computed that had not been put back";
        }
    } else if (layer != last_layer_ + 1 && error_.empty()) {
        error_ = "the graph has no output of layer " + std::to_string(layer - 1);
    }
    if (layers_[static_cast<size_t>(layer)] && (layer == 0 || layer == last_layer_ + 1)) {
        finder_.find(nodes_, last_output_, span_);
        if (span_.trouble == nullptr) {
            leave_out(out);
            ++layers_left_out_;
        } else if (error_.empty()) {
            error_ = "layer " + std::to_string(layer) + " cannot be left out of this graph: " + span_.trouble;
        }
    }
    last_layer_ = layer;
    last_output_ = out;
    nodes_.assign(1, out);
}

void GraphPatch::leave_out(ggml_tensor * out) {
    cleared_.reserve(cleared_.size() + span_.work.size());
    rewritten_.push_back(Rewritten{out, *out});  // before any change: these two may throw
    for (ggml_tensor * t : span_.work) {
        t->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
        cleared_.push_back(t);
    }
    std::fill(std::begin(out->src), std::end(out->src), nullptr);
    std::memset(out->op_params, 0, sizeof(out->op_params));
    out->src[0] = span_.source;
    if (span_.row_ids != nullptr) {
        out->op = GGML_OP_GET_ROWS;
        out->src[1] = span_.row_ids;
        return;
    }
    out->op = GGML_OP_CONT;
    if (out->data == span_.source->data) {
        out->flags &= ~GGML_TENSOR_FLAG_COMPUTE;  // the value is in place already
    }
}

void GraphPatch::on_computed(const ggml_tensor * t) {
    // All layers are computed once the last one's output is: nothing after it was changed.
    if (t == last_output_ && last_layer_ + 1 == static_cast<int>(layers_.size())) {
        restore();
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
    last_layer_ = -1;
    last_output_ = nullptr;
    on_trail_ = 0;
}

}  // namespace first_cpp
