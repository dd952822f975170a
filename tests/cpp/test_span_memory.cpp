// The ways of a span's input to its output, over memory that is laid out by hand.
#include <cstddef>
#include <string>
#include <vector>

#include "check.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "span_memory.h"

using namespace first_cpp;
using namespace first_cpp::testing;

namespace {

// residual, spare, runs, late, out: rows of eight floats at addresses that a test chooses. `spare` and `late` are
// skipped, `runs` is not, and each test gives one of them another place.
class HandMade {
public:
    HandMade() {
        span.residual = span.source = add("residual", 0);
        spare = add("spare", 100);
        runs = add("runs", 200);
        late = add("late", 300);
        out = add("out", 400);
        span.work = {spare, late};
    }

    static void put(ggml_tensor * t, size_t at) { t->data = base + at; }

    Route route() { return memory.find_route(nodes, span); }

    Nodes nodes;
    Span span;
    ggml_tensor *spare, *runs, *late, *out;

private:
    ggml_tensor * add(const char * name, size_t at) {
        ggml_tensor * t = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 8, 1);
        t->op = GGML_OP_MUL_MAT;
        t->flags |= GGML_TENSOR_FLAG_COMPUTE;
        ggml_set_name(t, name);
        put(t, at);
        nodes.push_back(t);
        return t;
    }

    static char base[1024];
    ggml_context_ptr context{ggml_init(ggml_init_params{8 * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true})};
    SpanMemory memory;
};

char HandMade::base[1024];

std::string text(const char * obstacle) { return obstacle == nullptr ? "" : obstacle; }

}  // namespace

TEST(span_memory_direct_where_the_output_is_in_place_or_apart) {
    HandMade m;
    CHECK(m.route().obstacle == nullptr && m.route().stopover == nullptr);
    HandMade::put(m.out, 0);
    CHECK(m.route().obstacle == nullptr && m.route().stopover == nullptr);
}

TEST(span_memory_what_is_skipped_overwrites_nothing) {
    HandMade m;
    HandMade::put(m.spare, 0);
    HandMade::put(m.late, 16);
    CHECK(m.route().obstacle == nullptr && m.route().stopover == nullptr);
}

TEST(span_memory_stopover_where_the_output_lies_half_over_the_input) {
    HandMade m;
    HandMade::put(m.out, 16);
    CHECK_EQUAL(text(m.route().obstacle), "");
    CHECK(m.route().stopover == m.spare);
}

TEST(span_memory_stopover_before_a_node_that_still_runs) {
    HandMade m;
    HandMade::put(m.runs, 16);
    CHECK(m.route().stopover == m.spare);
    m.span.work = {m.late};  // the first that is skipped comes too late
    m.spare->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    CHECK(m.route().stopover == nullptr);
    CHECK_EQUAL(text(m.route().obstacle), "its input does not outlast in memory what still runs");
}

TEST(span_memory_stopover_only_in_memory_that_stays) {
    HandMade m;
    HandMade::put(m.out, 16);
    HandMade::put(m.runs, 116);  // over the spare one
    CHECK(m.route().stopover == m.late);
    HandMade::put(m.late, 20);  // over the input
    CHECK(m.route().obstacle != nullptr);
    HandMade::put(m.late, 40);  // half under the output
    CHECK(m.route().obstacle != nullptr);
    HandMade::put(m.late, 16);  // the output's own place, over the input
    CHECK(m.route().obstacle != nullptr);
}

TEST(span_memory_no_stopover_in_a_cache_or_in_another_shape) {
    HandMade m;
    HandMade::put(m.out, 16);
    m.span.work = {m.spare};
    m.spare->view_src = m.late;
    CHECK(m.route().obstacle != nullptr);
    m.spare->view_src = nullptr;
    CHECK(m.route().obstacle == nullptr);
    m.spare->ne[0] = 4;
    CHECK(m.route().obstacle != nullptr);
}

TEST(span_memory_row_numbers_must_stay) {
    HandMade m;
    ggml_tensor ids = *m.runs;
    HandMade::put(&ids, 500);
    m.span.row_ids = &ids;
    CHECK_EQUAL(text(m.route().obstacle), "");
    HandMade::put(m.runs, 500);
    CHECK_EQUAL(text(m.route().obstacle), "a node that still runs was given the memory of its row numbers");
    HandMade::put(m.runs, 200);
    HandMade::put(m.out, 500);  // the copy would write over the numbers it reads
    CHECK(m.route().obstacle != nullptr);
    HandMade::put(m.out, 0);  // rows cannot be taken in place: by way of a stopover
    CHECK(m.route().stopover == m.spare);
}

// The rows were selected by a node of the span itself: until then the input must stay.
TEST(span_memory_input_must_stay_until_its_rows_are_selected) {
    HandMade m;
    m.span.source = m.late;
    m.span.source_at = 3;
    m.span.work = {m.spare};
    CHECK_EQUAL(text(m.route().obstacle), "");
    HandMade::put(m.runs, 16);
    CHECK_EQUAL(text(m.route().obstacle), "a node that still runs was given the memory of its input");
}
