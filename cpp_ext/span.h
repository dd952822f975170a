// What a layer is in a graph: the span between two points of the residual stream.
//
// A span is found from the graph alone, whatever the architecture: its output is a sum that the residual
// entering it takes part in; the rest of that sum, and everything else computed from the residual on the
// way, is the work that can be left out. Nothing here knows that spans are whole layers: the same search
// between `ffn_inp-<il>` and its neighbours finds attention or feed-forward blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

namespace first_cpp {

struct Span {
    ggml_tensor * residual = nullptr;  // enters the span; the output without the span's work
    ggml_tensor * source = nullptr;    // the residual, or its rows already selected by a GET_ROWS
    ggml_tensor * row_ids = nullptr;   // set when the output is GET_ROWS(source, row_ids)
    ggml_tensor * stopover = nullptr;  // set when the source is spoilt before the output is due: work whose memory keeps it
    std::vector<ggml_tensor *> work;   // computed nodes to leave out, in graph order, without the output
    const char * trouble = nullptr;    // why the span cannot be left out; null when it can
};

// Finds spans; keeps its scratch memory from one call to the next.
class SpanFinder {
public:
    // `nodes`: nodes in graph order, the last of them the span's output `nodes.back()`. What lies before
    // the graph's first node may be stale pointers, which are compared and never followed.
    // `previous`: the output of the span before, which must be in `nodes`; null for the first.
    // `keep_cache`: what the span writes to the KV cache (or a recurrent state) is no work to leave out.
    void find(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * previous, bool keep_cache, Span & span);

private:
    void index_nodes(const std::vector<ggml_tensor *> & nodes);
    int index_of(const ggml_tensor * t) const;
    bool mark_sum(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * previous);
    int find_residual(const std::vector<ggml_tensor *> & nodes) const;
    bool mark_work(const std::vector<ggml_tensor *> & nodes, int residual);
    bool is_part_of_input(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * residual) const;
    void keep_cache_writes(const std::vector<ggml_tensor *> & nodes);
    void select_rows(const std::vector<ggml_tensor *> & nodes, int residual, Span & span);
    const char * check_output(const ggml_tensor * out, const Span & span) const;
    bool keeps_memory(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * memory, int from, int to) const;
    bool keeps_value(const std::vector<ggml_tensor *> & nodes, int from, int to) const;
    bool finds_stopover(const std::vector<ggml_tensor *> & nodes, int source, Span & span) const;
    const char * check_memory(const std::vector<ggml_tensor *> & nodes, int residual, Span & span) const;

    bool marked(int i, uint8_t mark) const { return i >= 0 && (marks_[static_cast<size_t>(i)] & mark) != 0; }

    struct Slot {
        const ggml_tensor * key;
        int index;
    };
    std::vector<Slot> table_;     // open addressing, a power of two
    std::vector<uint8_t> marks_;  // per node
    std::vector<ggml_tensor *> stack_;
};

}  // namespace first_cpp
