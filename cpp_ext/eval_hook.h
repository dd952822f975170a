// What llama.cpp calls for every graph node of one context (llama_context_params.cb_eval).
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "graph_patch.h"
#include "graph_probe.h"
#include "hidden_state_feed.h"

namespace first_cpp {

// One per llama context, and it must outlive it. Nothing here needs Python's GIL, nothing throws across C: an exception
// in the callback is remembered, the graph runs on dense, and take_error() returns its message after the evaluation.
class EvalHook {
public:
    GraphPatch patch;
    HiddenStateFeed feed;
    GraphProbe probe;

    // bool (*ggml_backend_sched_eval_callback)(struct ggml_tensor * t, bool ask, void * user_data)
    static bool callback(ggml_tensor * t, bool ask, void * user_data) noexcept;

    // bool (*ggml_abort_callback)(void * data): asked by the CPU backend between nodes.
    static bool aborted(void * data) noexcept;

    // While on, every evaluation ends with llama_decode's status 2. From any thread.
    void abort(bool on) noexcept { abort_ = on; }

    // patch.start() and feed.start(); an error that nobody took is forgotten.
    void start_skipping();
    void start_reading(HiddenStateReader & reader, std::vector<std::string> names);

    // The graph as llama.cpp built it, and nothing read or skipped from now on.
    void stop() noexcept;

    // What went wrong since the last call, empty when nothing did. Before stop(), which ends the search for it.
    std::string take_error();

private:
    bool on_node(ggml_tensor * t);
    void on_computed(const ggml_tensor * t);
    void fail(const char * what) noexcept;

    std::string error_;
    std::atomic<bool> abort_{false};
};

}  // namespace first_cpp
