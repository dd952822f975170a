// Judges whether a span's input survives in memory until the copy that replaces its output, and by which way.
#include "span_memory.h"

#include "graph.h"

namespace first_cpp {

namespace {

// Whether the value of `from`, or its rows, can be written to the memory of `out`: it is there already, or that memory is
// apart from all that is read.
bool can_be_copied(const ggml_tensor * from, const ggml_tensor * out, const ggml_tensor * row_ids) {
    if (row_ids == nullptr) {
        return out->data == from->data || !overlap(out, from);
    }
    return !overlap(out, from) && !overlap(out, row_ids);
}

}  // namespace

Route SpanMemory::find_route(const Nodes & nodes, const Span & span) {
    nodes_ = &nodes;
    span_ = &span;
    mark_skipped();
    const size_t end = nodes.size() - 1;
    if (overwritten_at(span.residual, span.residual_at) < span.source_at) {
        return {nullptr, "a node that still runs was given the memory of its input"};
    }
    if (span.row_ids != nullptr && overwritten_at(span.row_ids, span.residual_at) < end) {
        return {nullptr, "a node that still runs was given the memory of its row numbers"};
    }
    const size_t overwritten = overwritten_at(span.source, span.source_at);
    if (overwritten == end && can_be_copied(span.source, nodes.back(), span.row_ids)) {
        return {};
    }
    for (size_t i = span.source_at + 1; i < overwritten; ++i) {
        if (can_keep_source(i)) {
            return {nodes[i], nullptr};
        }
    }
    return {nullptr, "its input does not outlast in memory what still runs"};
}

void SpanMemory::mark_skipped() {
    skipped_.assign(nodes_->size(), 0);
    auto next = span_->work.begin();
    for (size_t i = span_->residual_at + 1; next != span_->work.end(); ++i) {
        if ((*nodes_)[i] == *next) {
            skipped_[i] = 1;
            ++next;
        }
    }
}

// The first node after `since` that still runs and writes into `memory`; the output's place where none does.
size_t SpanMemory::overwritten_at(const ggml_tensor * memory, size_t since) const {
    const size_t end = nodes_->size() - 1;
    for (size_t i = since + 1; i < end; ++i) {
        const ggml_tensor * t = (*nodes_)[i];
        if (skipped_[i] == 0 && is_computed(t) && !is_alias(t) && overlap(t, memory)) {
            return i;
        }
    }
    return end;
}

// Whether node i is skipped work whose own memory, not the cache's, can hold the source until the output is due.
bool SpanMemory::can_keep_source(size_t i) const {
    const ggml_tensor * t = (*nodes_)[i];
    return skipped_[i] != 0 && t->view_src == nullptr && !is_alias(t) && t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) &&
           same_shape(t, span_->source) && !overlap(t, span_->source) &&
           (span_->row_ids == nullptr || !overlap(t, span_->row_ids)) && can_be_copied(t, nodes_->back(), span_->row_ids) &&
           overwritten_at(t, i) == nodes_->size() - 1;
}

}  // namespace first_cpp
