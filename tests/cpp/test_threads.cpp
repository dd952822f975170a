// What other threads may do: abort an evaluation, and evaluate with a hook of their own.
#include <atomic>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "evaluation.h"
#include "patch_case.h"

using namespace first_cpp;
using namespace first_cpp::testing;

TEST(threads_abort_while_evaluating) {
    EvalHook hook;
    Evaluation evaluation(&hook);
    ModelSpec spec;
    spec.layers.assign(6, LayerSpec{});
    const Model model(spec, evaluation.backend());
    const Batch batch;
    const LayerActions all(6, LayerAction::RUN);
    hook.patch.set_outputs({"l_out-0", "l_out-1", "l_out-2", "l_out-3", "l_out-4", "l_out-5"});
    hook.patch.set_actions(
        {LayerAction::RUN, LayerAction::SKIP, LayerAction::RUN, LayerAction::SKIP, LayerAction::RUN, LayerAction::RUN});

    std::atomic<bool> done{false};
    std::thread other([&] {
        for (bool on = true; !done; on = !on) {
            hook.abort(on);
        }
    });
    int n_aborted = 0;
    int n_whole = 0;
    while ((n_aborted == 0 || n_whole == 0) && n_aborted + n_whole < 100000) {
        const auto nodes = copy_nodes(evaluation.build(model, batch, all));
        hook.patch.start();
        (evaluation.compute(model, batch) == GGML_STATUS_ABORTED ? n_aborted : n_whole) += 1;
        hook.stop();
        check_nodes_equal(evaluation.graph(), nodes);
    }
    done = true;
    other.join();
    CHECK(n_aborted > 0 && n_whole > 0);
}

TEST(threads_two_hooks_do_not_meet) {
    std::vector<std::string> errors(2);
    const auto work = [&errors](size_t thread) {
        try {
            for (uint64_t seed = 0; seed < 60; ++seed) {
                Choices choices(1000 * (thread + 1) + seed);
                run_patch_case(choices);
            }
        } catch (const std::exception & e) {
            errors[thread] = e.what();
        }
    };
    std::thread other(work, 0);
    work(1);
    other.join();
    CHECK_EQUAL(errors[0], "");
    CHECK_EQUAL(errors[1], "");
}
