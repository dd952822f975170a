// Finds what a layer is in a graph: the span between two points of the residual stream.
#include "span_finder.h"

#include <algorithm>

#include "graph.h"

namespace first_cpp {

namespace {

constexpr uint8_t IN_SUM = 1;  // a term of the sum that the output is
constexpr uint8_t WORK = 2;    // computed from the residual
constexpr uint8_t PASSED = 4;  // the residual itself, or rows of it
constexpr uint8_t KEPT = 8;    // work that runs all the same: a cache is written from it

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

}  // namespace

const char * SpanFinder::find(const Nodes & nodes, const ggml_tensor * previous, bool keep_cache, Span & span) {
    span.residual = span.source = span.row_ids = nullptr;
    span.work.clear();
    nodes_ = &nodes;
    index_.bind(nodes);
    marks_.assign(nodes.size(), 0);

    if (!mark_sum(previous)) {
        return "its output is not its input plus what it computes";
    }
    if (!find_residual()) {
        return "its input was not found in the graph";
    }
    span.residual = nodes[residual_];
    span.residual_at = residual_;
    if (!mark_work()) {
        return "its output does not depend on its input";
    }
    if (previous == nullptr && is_part_of_input()) {
        return "its input was not found in the graph";
    }
    if (keep_cache) {
        mark_kept();
    }
    select_rows(span);
    list_work(span);
    return check_shapes(span);
}

// Walks back from the output through additions and row selections. True when `previous` was met, or none asked.
bool SpanFinder::mark_sum(const ggml_tensor * previous) {
    bool met = previous == nullptr;
    stack_.assign(1, nodes_->back());
    while (!stack_.empty()) {
        const ggml_tensor * t = stack_.back();
        stack_.pop_back();
        const int i = t == nullptr ? -1 : index_.of(t);
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
bool SpanFinder::find_residual() {
    const size_t n = nodes_->size();
    size_t first = 0;
    while (first < n && (marks_[first] & IN_SUM) == 0) {
        ++first;  // what lies before may be stale
    }
    residual_ = n;
    for (size_t i = first; i < n; ++i) {
        if ((marks_[i] & IN_SUM) != 0 || !is_computed(node(i))) {
            continue;
        }
        for (const ggml_tensor * source : node(i)->src) {
            const int j = index_.of(source);
            if (marked(j, IN_SUM)) {
                residual_ = std::min(residual_, static_cast<size_t>(j));
            }
        }
    }
    return residual_ < n;
}

// True when the output is work too, that is depends on the residual.
bool SpanFinder::mark_work() {
    marks_[residual_] |= PASSED;
    for (size_t i = residual_ + 1; i < nodes_->size(); ++i) {
        for (const ggml_tensor * source : node(i)->src) {
            const int j = index_.of(source);
            if (j == static_cast<int>(residual_) || marked(j, WORK)) {
                marks_[i] |= WORK;
                break;
            }
        }
        if ((marks_[i] & IN_SUM) != 0 && passes_through(node(i)) && marked(node(i)->src[0], PASSED)) {
            marks_[i] |= PASSED;
        }
    }
    return (marks_.back() & WORK) != 0;
}

// Where no span before shows it, the true input may be a sum that the residual is one term of, as of token and position
// embeddings, when something else reads the term.
bool SpanFinder::is_part_of_input() const {
    const ggml_tensor * residual = node(residual_);
    for (size_t i = 0; i < nodes_->size(); ++i) {
        const ggml_tensor * t = node(i);
        if ((marks_[i] & IN_SUM) == 0 || t->op != GGML_OP_ADD || (t->src[0] != residual && t->src[1] != residual)) {
            continue;
        }
        const ggml_tensor * other = t->src[t->src[0] == residual ? 1 : 0];
        if (other->op != GGML_OP_NONE && !marked(other, WORK)) {
            return true;
        }
    }
    return false;
}

// Cache writes and the work that they are computed from.
void SpanFinder::mark_kept() {
    for (size_t i = nodes_->size(); i-- > 0;) {
        if ((marks_[i] & WORK) == 0 || ((marks_[i] & KEPT) == 0 && !writes_cache(node(i)))) {
            continue;
        }
        marks_[i] |= KEPT;
        for (const ggml_tensor * source : node(i)->src) {
            const int j = index_.of(source);
            if (marked(j, WORK)) {
                marks_[static_cast<size_t>(j)] |= KEPT;  // sources lie before: this walk meets them
            }
        }
    }
}

// A last layer keeps only the rows that become outputs: then the copy must take those rows.
void SpanFinder::select_rows(Span & span) const {
    span.source = span.residual;
    span.source_at = residual_;
    for (size_t i = residual_ + 1; i < nodes_->size(); ++i) {
        if (node(i)->op != GGML_OP_GET_ROWS || (marks_[i] & IN_SUM) == 0) {
            continue;
        }
        if ((marks_[i] & PASSED) != 0) {
            span.source = (*nodes_)[i];
            span.source_at = i;
            span.row_ids = nullptr;
            return;
        }
        span.row_ids = node(i)->src[1];
    }
}

void SpanFinder::list_work(Span & span) const {
    for (size_t i = residual_ + 1; i + 1 < nodes_->size(); ++i) {
        if ((marks_[i] & (WORK | PASSED | KEPT)) == WORK && is_computed(node(i))) {
            span.work.push_back((*nodes_)[i]);
        }
    }
}

const char * SpanFinder::check_shapes(const Span & span) const {
    const ggml_tensor * from = span.source;
    const ggml_tensor * out = nodes_->back();
    if (out->type != GGML_TYPE_F32 || from->type != GGML_TYPE_F32 || !ggml_is_contiguous(out) || !ggml_is_contiguous(from)) {
        return "its input or output is not contiguous float32";
    }
    if (span.row_ids == nullptr ? !same_shape(out, from)
                                : out->ne[0] != from->ne[0] || ggml_nrows(out) != ggml_nelements(span.row_ids)) {
        return "its input and output have different shapes";
    }
    return nullptr;
}

}  // namespace first_cpp
