// Computes graphs as llama.cpp does: a scheduler over the CPU backend, with an evaluation callback.
#include "evaluation.h"

#include <cstring>

#include "check.h"
#include "ggml-cpu.h"

namespace first_cpp::testing {

Evaluation::Evaluation(EvalHook * hook)
    : backend_(ggml_backend_cpu_init()),
      memory_(most_nodes * 2 * ggml_tensor_overhead() + ggml_graph_overhead_custom(most_nodes, false)) {
    ggml_backend_t backend = backend_.get();
    sched_.reset(ggml_backend_sched_new(&backend, nullptr, 1, most_nodes, /*parallel=*/false, /*op_offload=*/true));
    set_hook(hook);
}

void Evaluation::set_hook(EvalHook * hook, int n_threads) {
    ggml_backend_cpu_set_n_threads(backend_.get(), n_threads);
    ggml_backend_cpu_set_abort_callback(backend_.get(), hook == nullptr ? nullptr : &EvalHook::aborted, hook);
    ggml_backend_sched_set_eval_callback(sched_.get(), hook == nullptr ? nullptr : &EvalHook::callback, hook);
}

// ggml-alloc uses its plan of the graph before again, though the new one has other edges, when the sizes of all nodes
// are the same. A graph of another number of nodes in between makes it plan anew.
void Evaluation::forget_plan() {
    context_.reset(ggml_init(ggml_init_params{memory_.size(), memory_.data(), /*no_alloc=*/true}));
    ggml_cgraph * other = ggml_new_graph_custom(context_.get(), 8, false);
    ggml_build_forward_expand(other, ggml_dup(context_.get(), ggml_new_tensor_1d(context_.get(), GGML_TYPE_F32, 1)));
    ggml_backend_sched_reset(sched_.get());
    CHECK(ggml_backend_sched_alloc_graph(sched_.get(), other));
}

const Graph & Evaluation::build(const Model & model, const Batch & batch, const LayerActions & actions) {
    forget_plan();
    context_.reset(ggml_init(ggml_init_params{memory_.size(), memory_.data(), /*no_alloc=*/true}));
    graph_ = model.build(context_.get(), batch, actions);
    ggml_backend_sched_reset(sched_.get());
    CHECK(ggml_backend_sched_alloc_graph(sched_.get(), graph_.nodes));
    return graph_;
}

ggml_status Evaluation::compute(const Model & model, const Batch & batch) {
    model.set_inputs(graph_, batch);
    return ggml_backend_sched_graph_compute(sched_.get(), graph_.nodes);
}

std::vector<uint8_t> Evaluation::result() const {
    std::vector<uint8_t> bytes(ggml_is_empty(graph_.result) ? 0 : ggml_nbytes(graph_.result));
    if (!bytes.empty()) {
        ggml_backend_tensor_get(graph_.result, bytes.data(), 0, bytes.size());
    }
    return bytes;
}

std::vector<ggml_tensor> copy_nodes(const Graph & graph) {
    std::vector<ggml_tensor> copies;
    for (int i = 0; i < ggml_graph_n_nodes(graph.nodes); ++i) {
        copies.push_back(*ggml_graph_node(graph.nodes, i));
    }
    return copies;
}

void check_nodes_equal(const Graph & graph, const std::vector<ggml_tensor> & before) {
    CHECK_EQUAL(static_cast<size_t>(ggml_graph_n_nodes(graph.nodes)), before.size());
    for (size_t i = 0; i < before.size(); ++i) {
        CHECK(std::memcmp(ggml_graph_node(graph.nodes, static_cast<int>(i)), &before[i], sizeof(ggml_tensor)) == 0);
    }
}

}  // namespace first_cpp::testing
