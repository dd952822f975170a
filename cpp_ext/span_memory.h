// Judges whether a span's input survives in memory until the copy that replaces its output, and by which way.
//
// ggml's allocator plans memory for the graph with every node in it: the residual's memory is given away after its last
// reader. Skipped nodes never write to theirs; a node that still runs may. README.md draws it as a time-line.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "node_index.h"
#include "span_finder.h"

namespace first_cpp {

// How the source of a span gets to its output.
struct Route {
    ggml_tensor * stopover = nullptr;  // skipped work whose memory keeps the source until the output is due; null: direct
    const char * obstacle = nullptr;   // why there is none; null when there is
};

// Keeps its scratch memory from one span to the next.
class SpanMemory {
public:
    // `span`: as SpanFinder found it in these `nodes`, whose last is the span's output.
    Route find_route(const Nodes & nodes, const Span & span);

private:
    void mark_skipped();
    size_t overwritten_at(const ggml_tensor * memory, size_t since) const;
    bool can_keep_source(size_t i) const;

    const Nodes * nodes_ = nullptr;  // of the span at hand
    const Span * span_ = nullptr;
    std::vector<uint8_t> skipped_;  // per node
};

}  // namespace first_cpp
