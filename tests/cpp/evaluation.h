// Computes graphs as llama.cpp does: a scheduler over the CPU backend, with an evaluation callback.
#pragma once

#include <cstdint>
#include <vector>

#include "../../cpp_ext/eval_hook.h"
#include "ggml-cpp.h"
#include "random_model.h"

namespace first_cpp::testing {

// A CPU backend, its scheduler, and one piece of memory for graphs: every graph lies at the addresses of the one before.
class Evaluation {
public:
    explicit Evaluation(EvalHook * hook = nullptr);

    // Who hears of the graphs from now on, null for nobody; it must outlive them.
    void set_hook(EvalHook * hook, int n_threads = 1);

    ggml_backend_t backend() const { return backend_.get(); }

    // Builds and allocates a graph; the one before is gone.
    const Graph & build(const Model & model, const Batch & batch, const LayerActions & actions);
    ggml_status compute(const Model & model, const Batch & batch);

    // The bytes of the result, as far as the graph was computed.
    std::vector<uint8_t> result() const;
    const Graph & graph() const { return graph_; }

private:
    void forget_plan();

    ggml_backend_ptr backend_;
    ggml_backend_sched_ptr sched_;
    std::vector<uint8_t> memory_;
    ggml_context_ptr context_;
    Graph graph_;
};

// All that a patch may change of a graph's nodes, and what it must not.
std::vector<ggml_tensor> copy_nodes(const Graph & graph);
void check_nodes_equal(const Graph & graph, const std::vector<ggml_tensor> & before);

}  // namespace first_cpp::testing
