// How one layer is skipped in one graph: what does not run, and how its input gets to its output.
#pragma once

#include "ggml.h"
#include "node_index.h"
#include "span_finder.h"
#include "span_memory.h"

namespace first_cpp {

struct SkipPlan {
    Span span;
    ggml_tensor * stopover = nullptr;  // among the span's work: runs as a copy of the source; null where none is needed
    const char * obstacle = nullptr;   // why the layer cannot be skipped; null when it can
};

class SkipPlanner {
public:
    // The arguments are those of SpanFinder::find.
    void plan(const Nodes & nodes, const ggml_tensor * previous, bool keep_cache, SkipPlan & plan) {
        plan.stopover = nullptr;
        plan.obstacle = finder_.find(nodes, previous, keep_cache, plan.span);
        if (plan.obstacle == nullptr) {
            const Route route = memory_.find_route(nodes, plan.span);
            plan.stopover = route.stopover;
            plan.obstacle = route.obstacle;
        }
    }

private:
    SpanFinder finder_;
    SpanMemory memory_;
};

}  // namespace first_cpp
