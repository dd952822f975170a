// What belongs to a layer, in graphs of a few nodes.
#include <string>
#include <vector>

#include "check.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "span_finder.h"

using namespace first_cpp;
using namespace first_cpp::testing;

namespace {

// x -> norm -> (k -> cache write), up; out = up + x
class OneLayer {
public:
    OneLayer() {
        ggml_context * c = context.get();
        ggml_tensor * table = ggml_new_tensor_2d(c, GGML_TYPE_F32, 8, 16);
        ggml_tensor * ids = ggml_new_tensor_1d(c, GGML_TYPE_I32, 2);
        ggml_tensor * weight = ggml_new_tensor_2d(c, GGML_TYPE_F32, 8, 8);
        ggml_tensor * cache = ggml_new_tensor_2d(c, GGML_TYPE_F32, 8, 32);
        ggml_tensor * cells = ggml_new_tensor_1d(c, GGML_TYPE_I64, 2);
        x = ggml_get_rows(c, table, ids);
        norm = ggml_rms_norm(c, x, 1e-5F);
        k = ggml_mul_mat(c, weight, norm);
        write = ggml_set_rows(c, cache, k, cells);
        up = ggml_mul_mat(c, weight, norm);
        out = ggml_add(c, up, x);
        nodes = {x, norm, k, write, up, out};
        for (ggml_tensor * t : nodes) {
            t->flags |= GGML_TENSOR_FLAG_COMPUTE;
        }
    }

    std::string obstacle(const ggml_tensor * previous, bool keep_cache = false) {
        const char * why = finder.find(nodes, previous, keep_cache, span);
        return why == nullptr ? "" : why;
    }

    ggml_context_ptr context{ggml_init(ggml_init_params{16 * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true})};
    ggml_tensor *x, *norm, *k, *write, *up, *out;
    Nodes nodes;
    SpanFinder finder;
    Span span;
};

}  // namespace

TEST(span_finder_all_that_comes_from_the_input_is_work) {
    OneLayer m;
    CHECK_EQUAL(m.obstacle(m.x), "");
    CHECK(m.span.residual == m.x && m.span.source == m.x && m.span.row_ids == nullptr);
    CHECK(m.span.work == Nodes({m.norm, m.k, m.write, m.up}));
}

TEST(span_finder_cache_writes_and_their_sources_can_be_kept) {
    OneLayer m;
    CHECK_EQUAL(m.obstacle(m.x, /*keep_cache=*/true), "");
    CHECK(m.span.work == Nodes({m.up}));
}

TEST(span_finder_nodes_that_are_not_computed_are_no_work) {
    OneLayer m;
    m.k->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    CHECK_EQUAL(m.obstacle(m.x), "");
    CHECK(m.span.work == Nodes({m.norm, m.write, m.up}));
}

// Of a graph before, at the addresses of this one's nodes: the places in this graph count.
TEST(span_finder_stale_nodes_before_the_graph) {
    OneLayer m;
    const Nodes graph = m.nodes;
    m.nodes.insert(m.nodes.begin(), {m.up, m.x, m.norm});
    CHECK_EQUAL(m.obstacle(nullptr), "");
    CHECK_EQUAL(m.span.residual_at, size_t{3});
    CHECK(m.span.work == Nodes({m.norm, m.k, m.write, m.up}));
}

TEST(span_finder_refusals) {
    OneLayer m;
    CHECK_EQUAL(m.obstacle(m.norm), "its output is not its input plus what it computes");
    m.out->type = GGML_TYPE_F16;
    CHECK_EQUAL(m.obstacle(m.x), "its input or output is not contiguous float32");
    m.out->type = GGML_TYPE_F32;
    m.out->ne[1] = 1;
    CHECK_EQUAL(m.obstacle(m.x), "its input and output have different shapes");
    m.out->ne[1] = 2;
    m.out->src[1] = m.up;  // twice its work, without its input
    CHECK_EQUAL(m.obstacle(nullptr), "its input was not found in the graph");
}

// ggml's graphs have sources before their readers; one that has not is refused.
TEST(span_finder_a_graph_out_of_order) {
    OneLayer m;
    ggml_tensor * reshaped = ggml_reshape_1d(m.context.get(), m.out, 16);
    m.nodes = {m.out, m.x, m.norm, m.up, reshaped};
    CHECK_EQUAL(m.obstacle(m.x), "its output does not depend on its input");
}
