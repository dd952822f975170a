// What a layer is in a graph: the span between two points of the residual stream.
#include "span.h"

#include <algorithm>

#include "graph.h"

namespace first_cpp {

namespace {

constexpr uint8_t IN_SUM = 1;  // a term of the sum that the output is
constexpr uint8_t WORK = 2;    // computed from the residual
constexpr uint8_t PASSED = 4;  // the residual itself, or rows of it
constexpr uint8_t KEPT = 8;    // work that runs all the same: a cache is written from it

size_t hash(const ggml_tensor * t) {
    return static_cast<size_t>((reinterpret_cast<uintptr_t>(t) >> 4) * 0x9E3779B97F4A7C15ULL >> 32);
}

// Ops whose result is (rows of) their first source, value for value.
bool passes_through(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_GET_ROWS:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_CONT:
            return true;
        default:
            return false;
    }
}

// Its first source times one number from the weights (gemma4 scales what leaves a layer).
bool is_scaled(const ggml_tensor * t) {
    return t->op == GGML_OP_MUL && t->src[1]->op == GGML_OP_NONE && ggml_nelements(t->src[1]) == 1;
}

// Whether the value of `from`, or its rows, can be written to the memory of `out`: in place already, or nowhere near what
// is read.
bool can_be_copied(const ggml_tensor * from, const ggml_tensor * out, const ggml_tensor * row_ids) {
    if (row_ids == nullptr) {
        return out->data == from->data || !overlap(out, from);
    }
    return !overlap(out, from) && !overlap(out, row_ids);
}

}  // namespace

void SpanFinder::find(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * previous, bool keep_cache, Span & span) {
    span.residual = span.source = span.row_ids = span.stopover = nullptr;
    span.work.clear();
    span.trouble = nullptr;

    index_nodes(nodes);
    if (!mark_sum(nodes, previous)) {
        span.trouble = "its output is not its input plus what it computes";
        return;
    }
    const int residual = find_residual(nodes);
    if (residual < 0) {
        span.trouble = "its input was not found in the graph";
        return;
    }
    span.residual = nodes[static_cast<size_t>(residual)];
    if (!mark_work(nodes, residual)) {
        span.trouble = "its output does not depend on its input";
        return;
    }
    if (previous == nullptr && is_part_of_input(nodes, span.residual)) {
        span.trouble = "its input was not found in the graph";
        return;
    }
    if (keep_cache) {
        keep_cache_writes(nodes);
    }
    select_rows(nodes, residual, span);
    span.trouble = check_output(nodes.back(), span);
    if (span.trouble == nullptr) {
        span.trouble = check_memory(nodes, residual, span);
    }
    for (size_t i = static_cast<size_t>(residual) + 1; i + 1 < nodes.size(); ++i) {
        if ((marks_[i] & (WORK | PASSED | KEPT)) == WORK && is_computed(nodes[i]) && nodes[i] != span.stopover) {
            span.work.push_back(nodes[i]);
        }
    }
}

void SpanFinder::index_nodes(const std::vector<ggml_tensor *> & nodes) {
    size_t size = 64;
    while (size < nodes.size() * 2) {
        size *= 2;
    }
    table_.assign(size, Slot{nullptr, -1});
    marks_.assign(nodes.size(), 0);
    for (size_t i = 0; i < nodes.size(); ++i) {
        size_t slot = hash(nodes[i]) & (size - 1);
        while (table_[slot].key != nullptr && table_[slot].key != nodes[i]) {
            slot = (slot + 1) & (size - 1);
        }
        table_[slot] = Slot{nodes[i], static_cast<int>(i)};  // the last occurrence: the graph at hand
    }
}

int SpanFinder::index_of(const ggml_tensor * t) const {
    const size_t mask = table_.size() - 1;
    for (size_t slot = hash(t) & mask; table_[slot].key != nullptr; slot = (slot + 1) & mask) {
        if (table_[slot].key == t) {
            return table_[slot].index;
        }
    }
    return -1;
}

// Walks back from the output through additions and row selections. True when `previous` was met, or none asked.
bool SpanFinder::mark_sum(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * previous) {
    bool met = previous == nullptr;
    stack_.assign(1, nodes.back());
    while (!stack_.empty()) {
        const ggml_tensor * t = stack_.back();
        stack_.pop_back();
        const int i = t == nullptr ? -1 : index_of(t);
        if (i < 0 || marked(i, IN_SUM)) {
            continue;  // weights, and what lies before
        }
        marks_[static_cast<size_t>(i)] |= IN_SUM;
        if (t == previous) {
            met = true;
        } else if (t->op == GGML_OP_ADD) {
            stack_.push_back(t->src[0]);
            stack_.push_back(t->src[1]);
        } else if (passes_through(t) || is_scaled(t)) {
            stack_.push_back(t->src[0]);
        }
    }
    return met;
}

// The residual is the earliest term of the sum that the span also reads in another way.
int SpanFinder::find_residual(const std::vector<ggml_tensor *> & nodes) const {
    const int n = static_cast<int>(nodes.size());
    int first = 0;
    while (first < n && !marked(first, IN_SUM)) {
        ++first;  // what lies before may be stale
    }
    int residual = n;
    for (int i = first; i < n; ++i) {
        const ggml_tensor * t = nodes[static_cast<size_t>(i)];
        if (marked(i, IN_SUM) || !is_computed(t)) {
            continue;
        }
        for (const ggml_tensor * source : t->src) {
            const int j = source == nullptr ? -1 : index_of(source);
            if (marked(j, IN_SUM)) {
                residual = std::min(residual, j);
            }
        }
    }
    return residual < n ? residual : -1;
}

bool SpanFinder::mark_work(const std::vector<ggml_tensor *> & nodes, int residual) {
    marks_[static_cast<size_t>(residual)] |= PASSED;
    for (size_t i = static_cast<size_t>(residual) + 1; i < nodes.size(); ++i) {
        for (const ggml_tensor * source : nodes[i]->src) {
            const int j = source == nullptr ? -1 : index_of(source);
            if (j == residual || marked(j, WORK)) {
                marks_[i] |= WORK;
                break;
            }
        }
        if (marked(static_cast<int>(i), IN_SUM) && passes_through(nodes[i]) && marked(index_of(nodes[i]->src[0]), PASSED)) {
            marks_[i] |= PASSED;
        }
    }
    return (marks_.back() & WORK) != 0;
}

// Where no span before tells, the true input may be a sum that `residual` is one term of, as of token and position
// embeddings, when something else reads the term.
bool SpanFinder::is_part_of_input(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * residual) const {
    for (size_t i = 0; i < nodes.size(); ++i) {
        const ggml_tensor * t = nodes[i];
        if ((marks_[i] & IN_SUM) == 0 || t->op != GGML_OP_ADD || (t->src[0] != residual && t->src[1] != residual)) {
            continue;
        }
        const ggml_tensor * other = t->src[t->src[0] == residual ? 1 : 0];
        if (other->op != GGML_OP_NONE && !marked(index_of(other), WORK)) {
            return true;
        }
    }
    return false;
}

void SpanFinder::keep_cache_writes(const std::vector<ggml_tensor *> & nodes) {
    for (size_t i = nodes.size(); i-- > 0;) {
        if ((marks_[i] & WORK) == 0 || ((marks_[i] & KEPT) == 0 && !writes_cache(nodes[i]))) {
            continue;
        }
        marks_[i] |= KEPT;
        for (const ggml_tensor * source : nodes[i]->src) {
            const int j = source == nullptr ? -1 : index_of(source);
            if (marked(j, WORK)) {
                marks_[static_cast<size_t>(j)] |= KEPT;  // sources lie before: this walk meets them
            }
        }
    }
}

// A last layer keeps only the rows that become outputs: then the copy must take those rows.
void SpanFinder::select_rows(const std::vector<ggml_tensor *> & nodes, int residual, Span & span) {
    span.source = span.residual;
    for (size_t i = static_cast<size_t>(residual) + 1; i < nodes.size(); ++i) {
        if (nodes[i]->op != GGML_OP_GET_ROWS || (marks_[i] & IN_SUM) == 0) {
            continue;
        }
        if ((marks_[i] & PASSED) != 0) {
            span.source = nodes[i];
            span.row_ids = nullptr;
            return;
        }
        span.row_ids = nodes[i]->src[1];
    }
}

const char * SpanFinder::check_output(const ggml_tensor * out, const Span & span) const {
    const ggml_tensor * from = span.source;
    if (out->type != GGML_TYPE_F32 || from->type != GGML_TYPE_F32 || !ggml_is_contiguous(out) || !ggml_is_contiguous(from)) {
        return "its input or output is not contiguous float32";
    }
    if (span.row_ids == nullptr ? !same_shape(out, from)
                                : out->ne[0] != from->ne[0] || ggml_nrows(out) != ggml_nelements(span.row_ids)) {
        return "its input and output have different shapes";
    }
    return nullptr;
}

// Whether the memory of node `from` is as that node left it when node `to` is due. ggml's allocator reuses it after its
// last reader. Readers that are left out do not matter; a node that still runs would spoil it.
bool SpanFinder::keeps_value(const std::vector<ggml_tensor *> & nodes, int from, int to) const {
    return keeps_memory(nodes, nodes[static_cast<size_t>(from)], from, to);
}

bool SpanFinder::keeps_memory(const std::vector<ggml_tensor *> & nodes, const ggml_tensor * memory, int from, int to) const {
    for (int i = from + 1; i < to; ++i) {
        const ggml_tensor * t = nodes[static_cast<size_t>(i)];
        const bool runs = is_computed(t) && !is_alias(t) && (!marked(i, WORK) || marked(i, PASSED | KEPT));
        if (runs && overlap(t, memory)) {
            return false;
        }
    }
    return true;
}

// A node to leave out whose memory can hold the source until the output is due.
bool SpanFinder::finds_stopover(const std::vector<ggml_tensor *> & nodes, int source, Span & span) const {
    const int end = static_cast<int>(nodes.size()) - 1;
    for (int i = source + 1; i < end && keeps_value(nodes, source, i); ++i) {
        ggml_tensor * t = nodes[static_cast<size_t>(i)];
        const bool left_out = marked(i, WORK) && !marked(i, PASSED | KEPT) && is_computed(t);
        const bool has_memory_of_its_own = t->view_src == nullptr && !is_alias(t);  // not the cache's
        if (left_out && has_memory_of_its_own && t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) &&
            same_shape(t, span.source) && !overlap(t, span.source) && (span.row_ids == nullptr || !overlap(t, span.row_ids)) &&
            can_be_copied(t, nodes.back(), span.row_ids) && keeps_value(nodes, i, end)) {
            span.stopover = t;
            return true;
        }
    }
    return false;
}

const char * SpanFinder::check_memory(const std::vector<ggml_tensor *> & nodes, int residual, Span & span) const {
    const int source = index_of(span.source);
    const int end = static_cast<int>(nodes.size()) - 1;
    if (!keeps_value(nodes, residual, source)) {
        return "a node that still runs was given the memory of its input";
    }
    if (span.row_ids != nullptr && !keeps_memory(nodes, span.row_ids, residual, end)) {
        return "a node that still runs was given the memory of its row numbers";
    }
    if (can_be_copied(span.source, nodes.back(), span.row_ids) && keeps_value(nodes, source, end)) {
        return nullptr;
    }
    return finds_stopover(nodes, source, span) ? nullptr : "its input does not outlast in memory what still runs";
}

}  // namespace first_cpp
