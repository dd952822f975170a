// One random case for the graph patch: a model, and evaluations of it with layers skipped.
#include "patch_case.h"

#include <stdexcept>
#include <string>

#include "check.h"
#include "evaluation.h"

namespace first_cpp::testing {

namespace {

class Case {
public:
    Case(Choices & choices, const ModelSpec & spec)
        : choices_(choices), model_(spec, patched_.backend()), all_(model_.spec().layers.size(), LayerAction::RUN) {
        patched_.set_hook(&hook_, choices.from_seed() && choices.one_in(8) ? 2 : 1);
    }

    ~Case() { patched_.set_hook(nullptr); }

    Case(const Case &) = delete;
    Case & operator=(const Case &) = delete;

    CaseResult run() {
        try {
            return run_all();
        } catch (const std::exception & e) {
            throw std::logic_error(std::string(e.what()) + " (" + describe(model_.spec()) + ")");
        }
    }

private:
    CaseResult run_all() {
        probe();
        Batch batch;
        for (int n = choices_.between(1, 3); n > 0; --n) {
            const bool reuse = counts_.n_evaluations > 0 && choices_.one_in(3);
            batch = reuse ? batch : draw_batch(choices_, model_.spec());
            evaluate(batch, reuse);
        }
        return counts_;
    }

    // Nothing is computed, the graph is as it was, and no layer is accepted that cannot be skipped.
    void probe() {
        const Batch batch = draw_batch(choices_, model_.spec());
        const Graph & graph = patched_.build(model_, batch, all_);
        const auto before = copy_nodes(graph);
        const auto caches = model_.caches();
        hook_.probe.begin(model_.spec().n_layer());
        CHECK_EQUAL(patched_.compute(model_, batch), GGML_STATUS_SUCCESS);
        const Layout layout = hook_.probe.finish();
        check_nodes_equal(graph, before);
        CHECK(model_.caches() == caches);
        CHECK_EQUAL(layout.n_nodes, before.size());
        CHECK_EQUAL(layout.layers.size(), all_.size());
        std::vector<std::string> outputs;
        bool named = true;  // as far as the outputs of all layers before are known
        for (int il = 0; il < model_.spec().n_layer(); ++il) {
            const LayerLayout & layer = layout.layers[static_cast<size_t>(il)];
            check_accepted(il, layer.unskippable.empty() && !layer.cache_is_shared, /*keep_cache=*/false);
            check_accepted(il, layer.unskippable_keep_cache.empty(), /*keep_cache=*/true);
            named = named && !layer.output.empty();
            if (named) {
                outputs.push_back(layer.output);
            }
            can_skip_.push_back(named && layer.unskippable.empty() && !layer.cache_is_shared);
            can_keep_cache_.push_back(named && layer.unskippable_keep_cache.empty());
            const ModelSpec & spec = model_.spec();
            if (spec.output_names == OutputNames::Usual && !spec.random_order && spec.separable(il, /*keep_cache=*/true)) {
                ++counts_.n_separable;
                counts_.n_accepted += can_keep_cache_.back() ? 1 : 0;
            }
        }
        n_outputs_ = outputs.size();
        hook_.patch.set_outputs(outputs);
    }

    void check_accepted(int il, bool accepted, bool keep_cache) {
        if (accepted && !model_.spec().separable(il, keep_cache)) {
            fail(__FILE__, __LINE__, "layer " + std::to_string(il) + " was accepted and cannot be skipped");
        }
    }

    LayerActions draw_actions() {
        LayerActions actions(all_);
        for (size_t il = 0; il < actions.size(); ++il) {
            const uint32_t choice = choices_.below(3);
            if (choice == 1 && can_skip_[il]) {
                actions[il] = LayerAction::SKIP;
            } else if (choice == 2 && can_keep_cache_[il]) {
                actions[il] = LayerAction::SKIP_KEEP_CACHE;
            }
        }
        return actions;
    }

    void evaluate(const Batch & batch, bool reuse) {
        const LayerActions actions = draw_actions();
        const auto caches = model_.caches();
        const Graph & graph = reuse ? patched_.graph() : patched_.build(model_, batch, all_);
        const auto before = copy_nodes(graph);
        hook_.patch.set_actions(LayerActions(actions.begin(), actions.begin() + static_cast<std::ptrdiff_t>(n_outputs_)));
        hook_.patch.start();
        CHECK_EQUAL(patched_.compute(model_, batch), GGML_STATUS_SUCCESS);
        const std::string error = hook_.take_error();
        hook_.stop();
        check_nodes_equal(graph, before);
        ++counts_.n_evaluations;
        if (!error.empty()) {
            ++counts_.n_refused;
            model_.set_caches(caches);
            return;
        }
        for (const LayerAction action : actions) {
            counts_.n_skipped += action == LayerAction::RUN ? 0 : 1;
        }
        const auto result = patched_.result();
        const auto caches_after = model_.caches();
        model_.set_caches(caches);
        direct_.build(model_, batch, actions);
        CHECK_EQUAL(direct_.compute(model_, batch), GGML_STATUS_SUCCESS);
        check_same(caches_after, model_.caches(), "the caches", actions);
        check_same(result, direct_.result(), "the result", actions);
    }

    static void check_same(const std::vector<uint8_t> & found, const std::vector<uint8_t> & expected, const char * what,
                           const LayerActions & actions) {
        if (found != expected) {
            std::string text = std::string("not equal: ") + what + " without layers";
            for (size_t il = 0; il < actions.size(); ++il) {
                text +=
                    actions[il] == LayerAction::RUN ? "" : (actions[il] == LayerAction::SKIP ? " " : " c") + std::to_string(il);
            }
            fail(__FILE__, __LINE__, text);
        }
    }

    Choices & choices_;
    EvalHook hook_;
    // Of all cases of a thread: to make one takes longer than to use it.
    static thread_local Evaluation patched_;
    static thread_local Evaluation direct_;
    Model model_;
    const LayerActions all_;
    size_t n_outputs_ = 0;  // layers from the first on whose outputs are known
    std::vector<bool> can_skip_;
    std::vector<bool> can_keep_cache_;
    CaseResult counts_;
};

thread_local Evaluation Case::patched_;
thread_local Evaluation Case::direct_;

}  // namespace

CaseResult run_patch_case(Choices & choices) { return run_patch_case(choices, draw_model(choices)); }

CaseResult run_patch_case(Choices & choices, const ModelSpec & spec) { return Case(choices, spec).run(); }

}  // namespace first_cpp::testing
