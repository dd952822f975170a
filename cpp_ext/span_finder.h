// Finds what a layer is in a graph: the span between two points of the residual stream.
//
// A span is found from the graph alone, whatever the architecture: its output is a sum that the residual entering it
// takes part in; the rest of that sum, and everything else computed from the residual on the way, is work that can be
// skipped. Nothing here knows that spans are whole layers: the same search between `ffn_inp-<il>` and its neighbours
// finds attention or feed-forward blocks. README.md draws a layer with the marks that the search sets.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "node_index.h"

namespace first_cpp {

struct Span {
    ggml_tensor * residual = nullptr;  // enters the span; the output without the span's work
    ggml_tensor * source = nullptr;    // the residual, or its rows already selected by a GET_ROWS
    ggml_tensor * row_ids = nullptr;   // set when the output is GET_ROWS(source, row_ids)
    size_t residual_at = 0;            // where the residual and the source stand among the nodes
    size_t source_at = 0;
    Nodes work;  // computed nodes to skip, in graph order, without the output
};

// Keeps its scratch memory from one search to the next.
class SpanFinder {
public:
    // `nodes`: the last of them is the span's output. What lies before the graph's first node may be stale pointers,
    // which are compared and never followed.
    // `previous`: the output of the span before, which must be in `nodes`; null for the first.
    // `keep_cache`: what the span writes to the KV cache (or a recurrent state) is no work to skip.
    // Returns why the span cannot be skipped, null when nothing but memory can be in the way (span_memory.h). The span's
    // fields are set as far as they were found.
    const char * find(const Nodes & nodes, const ggml_tensor * previous, bool keep_cache, Span & span);

private:
    bool mark_sum(const ggml_tensor * previous);
    bool find_residual();
    bool mark_work();
    bool is_part_of_input() const;
    void mark_kept();
    void select_rows(Span & span) const;
    void list_work(Span & span) const;
    const char * check_shapes(const Span & span) const;

    const ggml_tensor * node(size_t i) const { return (*nodes_)[i]; }
    bool marked(int i, uint8_t mark) const { return i >= 0 && (marks_[static_cast<size_t>(i)] & mark) != 0; }
    bool marked(const ggml_tensor * t, uint8_t mark) const { return marked(index_.of(t), mark); }

    const Nodes * nodes_ = nullptr;  // of the search at hand
    size_t residual_ = 0;            // its place
    NodeIndex index_;
    std::vector<uint8_t> marks_;  // per node
    std::vector<const ggml_tensor *> stack_;
};

}  // namespace first_cpp
