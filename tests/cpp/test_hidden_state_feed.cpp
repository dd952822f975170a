// The feed hands every hidden state over once a pass, whatever the batches.
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "evaluation.h"
#include "hidden_states.h"

using namespace first_cpp;
using namespace first_cpp::testing;

namespace {

ModelSpec three_layers() {
    ModelSpec spec;
    spec.layers.assign(3, LayerSpec{});
    return spec;
}

Batch tokens(int begin, int n_tokens) {
    Batch batch{begin, n_tokens, {}};
    for (int32_t i = 0; i < n_tokens; ++i) {
        batch.out_ids.push_back(i);
    }
    return batch;
}

class Throwing : public HiddenStateReader {
public:
    void read(int, const float *, int64_t, int64_t) override { throw std::runtime_error("full"); }
};

}  // namespace

// Positions 0 to 5 read in one batch and in three give the same states, in token order.
TEST(hidden_state_feed_batches_give_the_same_states) {
    EvalHook hook;
    Evaluation evaluation(&hook);
    const Model model(three_layers(), evaluation.backend());
    const LayerActions all(3, LayerAction::RUN);
    const auto caches = model.caches();
    const auto read = [&](const std::vector<int> & sizes) {
        model.set_caches(caches);
        HiddenStates states(4);
        hook.feed.start(states, {"embd", "l_out-0", "l_out-1", "l_out-2"});
        int begin = 0;
        for (const int n : sizes) {
            evaluation.build(model, tokens(begin, n), all);
            evaluation.compute(model, tokens(begin, n));
            begin += n;
        }
        hook.stop();
        CHECK_EQUAL(hook.take_error(), "");
        return states.points();
    };
    const auto one = read({6});
    const auto three = read({3, 1, 2});
    CHECK_EQUAL(one.size(), size_t{4});
    for (size_t point = 0; point < one.size(); ++point) {
        CHECK_EQUAL(one[point].size(), size_t{6 * 8});
        CHECK_EQUAL(three[point].size(), one[point].size());
        for (size_t i = 0; i < one[point].size(); ++i) {
            CHECK(std::abs(one[point][i] - three[point][i]) < 1e-4F);
        }
    }
    CHECK(one[0] != one[1] && one[1] != one[2] && one[2] != one[3]);
}

// An exception in a reader crosses no C: the evaluation ends well, the feed has stopped, and the error is returned once.
TEST(hidden_state_feed_exceptions_are_remembered) {
    EvalHook hook;
    Evaluation evaluation(&hook);
    const Model model(three_layers(), evaluation.backend());
    Throwing reader;
    hook.feed.start(reader, {"embd"});
    evaluation.build(model, tokens(0, 2), LayerActions(3, LayerAction::RUN));
    CHECK_EQUAL(evaluation.compute(model, tokens(0, 2)), GGML_STATUS_SUCCESS);
    CHECK(!hook.feed.active());
    CHECK_EQUAL(hook.take_error(), "full");
    CHECK_EQUAL(hook.take_error(), "");
}

TEST(hidden_state_feed_without_names_reads_nothing) {
    EvalHook hook;
    Throwing reader;
    hook.feed.start(reader, {});
    CHECK(!hook.feed.active());
}

TEST(hidden_state_feed_refuses_states_that_are_not_float32) {
    EvalHook hook;
    Evaluation evaluation(&hook);
    ModelSpec spec = three_layers();
    spec.half_mask = true;
    const Model model(spec, evaluation.backend());
    Throwing reader;
    hook.feed.start(reader, {"kq_mask_cast-0"});
    evaluation.build(model, tokens(0, 2), LayerActions(3, LayerAction::RUN));
    evaluation.compute(model, tokens(0, 2));
    CHECK_EQUAL(hook.take_error(), "hidden state kq_mask_cast-0 is not contiguous float32");
}
