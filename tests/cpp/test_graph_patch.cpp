// The graph patch over random models: whatever is skipped, the result is that of the model without it.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "evaluation.h"
#include "patch_case.h"

using namespace first_cpp;
using namespace first_cpp::testing;

TEST(graph_patch_equals_models_without_the_layers) {
    CaseResult sum;
    for (uint64_t seed = 0; seed < 2000; ++seed) {
        Choices choices(seed);
        try {
            const CaseResult one = run_patch_case(choices);
            sum.n_separable += one.n_separable;
            sum.n_accepted += one.n_accepted;
            sum.n_evaluations += one.n_evaluations;
            sum.n_refused += one.n_refused;
            sum.n_skipped += one.n_skipped;
        } catch (const std::exception & e) {
            throw std::logic_error("seed " + std::to_string(seed) + ": " + e.what());
        }
    }
    std::printf("  %d layers can be skipped, %d accepted; %d evaluations, %d refused, %d layers skipped\n", sum.n_separable,
                sum.n_accepted, sum.n_evaluations, sum.n_refused, sum.n_skipped);
    // Refusing everything would satisfy every check above.
    CHECK(sum.n_accepted * 10 > sum.n_separable * 8);
    CHECK(sum.n_refused * 10 < sum.n_evaluations);
    CHECK(sum.n_skipped > 1000);
}

namespace {

// Many evaluations of one model; how many layers were skipped in all.
int evaluate_often(const ModelSpec & spec) {
    int n_skipped = 0;
    for (uint64_t seed = 0; seed < 100; ++seed) {
        Choices choices(seed);
        n_skipped += run_patch_case(choices, spec).n_skipped;
    }
    return n_skipped;
}

LayerSpec layer_that_reads(Work work, Reads reads, int other = 0) {
    LayerSpec layer;
    layer.work = work;
    layer.reads = reads;
    layer.other = other;
    return layer;
}

}  // namespace

// The output of the last layer, and other nodes, may be given the memory of the row numbers after their last use.
TEST(graph_patch_row_numbers_in_memory_that_is_used_again) {
    ModelSpec spec;
    spec.rows = Rows::OfSum;
    for (const Reads reads : {Reads::Nothing, Reads::OwnRows}) {
        spec.layers = {layer_that_reads(Work::FeedForward, Reads::Nothing), layer_that_reads(Work::FeedForward, reads)};
        for (const Sum sum : {Sum::Plain, Sum::Copied, Sum::Reshaped}) {
            spec.layers.back().sum = sum;
            CHECK(evaluate_often(spec) > 0);
        }
    }
}

// Where the input waits in the memory of a skipped node, that is not a cache that such a node writes.
TEST(graph_patch_input_waits_in_no_cache) {
    int n_skipped = 0;
    for (uint64_t seed = 0; seed < 1500; ++seed) {
        Choices choices(seed);
        ModelSpec spec = draw_model(choices);
        spec.random_order = false;
        spec.layers.resize(1);
        spec.layers[0].work = Work::State;
        spec.layers[0].reads = Reads::OwnRows;
        n_skipped += run_patch_case(choices, spec).n_skipped;
    }
    CHECK(n_skipped > 100);
}

// The token embedding is a term of the first layer's input, and something else in the layer reads it.
TEST(graph_patch_first_input_is_not_one_of_its_terms) {
    ModelSpec spec;
    spec.embedding = Embedding::Positioned;
    for (const Rows rows : {Rows::All, Rows::OfTerms, Rows::OfSum}) {
        spec.rows = rows;
        spec.layers = {layer_that_reads(Work::FeedForward, Reads::Embedding)};
        evaluate_often(spec);
        spec.layers.push_back(layer_that_reads(Work::FeedForward, Reads::Nothing));
        CHECK(evaluate_often(spec) > 0);
    }
}

// A layer that is not found, its output having no name of its own, reads the cache of one that is.
TEST(graph_patch_cache_that_a_layer_not_found_reads) {
    ModelSpec spec;
    spec.output_names = OutputNames::Other;
    spec.layers = {layer_that_reads(Work::Parallel, Reads::Nothing), layer_that_reads(Work::Sequential, Reads::CacheOfOther)};
    spec.layers[1].sum = Sum::Viewed;
    CHECK(evaluate_often(spec) > 0);
}

namespace {

// A model of plain layers, a hook that knows their outputs, and an evaluation with it.
class PlainModel {
public:
    explicit PlainModel(int n_layer)
        : evaluation(&hook), model(spec(n_layer), evaluation.backend()), all(model.spec().layers.size()) {
        evaluation.build(model, batch, all);
        hook.probe.begin(n_layer);
        evaluation.compute(model, batch);
        names.clear();
        for (const LayerLayout & layer : hook.probe.finish().layers) {
            CHECK_EQUAL(layer.unskippable, "");
            names.push_back(layer.output);
        }
        hook.patch.set_outputs(names);
    }

    static ModelSpec spec(int n_layer) {
        ModelSpec spec;
        spec.layers.assign(static_cast<size_t>(n_layer), LayerSpec{});
        return spec;
    }

    EvalHook hook;
    Evaluation evaluation;
    Model model;
    LayerActions all;
    Batch batch;
    std::vector<std::string> names;
};

}  // namespace

TEST(graph_patch_names_the_layer_whose_output_is_missing) {
    PlainModel m(3);
    m.hook.patch.set_outputs({"l_out-0", "other", "l_out-2"});
    m.hook.patch.set_actions(LayerActions(3, LayerAction::RUN));
    m.evaluation.build(m.model, m.batch, m.all);
    m.hook.patch.start();
    m.evaluation.compute(m.model, m.batch);
    const std::string error = m.hook.take_error();
    m.hook.stop();
    CHECK_EQUAL(error, "the graph has no output of layer 1 (other)");
    CHECK_EQUAL(m.hook.take_error(), "");
}

TEST(graph_patch_needs_an_action_for_each_layer) {
    PlainModel m(3);
    CHECK_THROWS(std::invalid_argument, m.hook.patch.set_actions(LayerActions(2)));
}

// One graph after the other, each at the addresses of the one before.
TEST(graph_patch_of_several_graphs) {
    PlainModel m(4);
    m.hook.patch.set_actions({LayerAction::RUN, LayerAction::SKIP, LayerAction::SKIP_KEEP_CACHE, LayerAction::RUN});
    const size_t before = m.hook.patch.layers_skipped();
    for (int i = 0; i < 3; ++i) {
        const auto nodes = copy_nodes(m.evaluation.build(m.model, m.batch, m.all));
        m.hook.patch.start();
        m.evaluation.compute(m.model, m.batch);
        CHECK_EQUAL(m.hook.take_error(), "");
        m.hook.stop();
        check_nodes_equal(m.evaluation.graph(), nodes);
    }
    CHECK_EQUAL(m.hook.patch.layers_skipped() - before, size_t{6});
}

// As for the micro-batches of one prompt: each start() puts back the graph of the one before.
TEST(graph_patch_is_started_again_and_again) {
    PlainModel m(4);
    m.hook.patch.set_actions({LayerAction::SKIP, LayerAction::RUN, LayerAction::SKIP, LayerAction::RUN});
    const auto nodes = copy_nodes(m.evaluation.build(m.model, m.batch, m.all));
    for (int i = 0; i < 3; ++i) {
        m.hook.start_skipping();
        check_nodes_equal(m.evaluation.graph(), nodes);
        m.evaluation.compute(m.model, m.batch);
        CHECK_EQUAL(m.hook.take_error(), "");
    }
    m.hook.stop();
    check_nodes_equal(m.evaluation.graph(), nodes);
    CHECK_EQUAL(m.hook.patch.layers_skipped(), size_t{6});
}

TEST(graph_patch_second_graph_is_legal_where_nothing_is_skipped) {
    PlainModel m(3);
    m.evaluation.build(m.model, m.batch, m.all);
    m.hook.start_skipping();
    m.evaluation.compute(m.model, m.batch);
    m.evaluation.build(m.model, m.batch, m.all);
    m.evaluation.compute(m.model, m.batch);
    CHECK_EQUAL(m.hook.take_error(), "");
    m.hook.stop();
}

// stop() did not follow a graph: the next graph says so, and nothing changed stays.
TEST(graph_patch_reports_a_graph_that_was_not_put_back) {
    PlainModel m(2);
    m.hook.patch.set_actions({LayerAction::RUN, LayerAction::SKIP});
    m.evaluation.build(m.model, m.batch, m.all).outputs[1]->op_params[3] = 7;  // an addition has none, nor has the copy
    const auto nodes = copy_nodes(m.evaluation.graph());
    m.hook.patch.start();
    m.evaluation.compute(m.model, m.batch);
    m.evaluation.compute(m.model, m.batch);
    CHECK_EQUAL(m.hook.take_error(), "a graph was computed that had not been put back");
    m.hook.stop();
    check_nodes_equal(m.evaluation.graph(), nodes);
}

// Evaluation ends between two nodes; what was changed up to there is put back by stop().
TEST(graph_patch_is_undone_after_an_aborted_evaluation) {
    PlainModel m(4);
    m.hook.patch.set_actions({LayerAction::SKIP, LayerAction::RUN, LayerAction::SKIP, LayerAction::RUN});
    const auto nodes = copy_nodes(m.evaluation.build(m.model, m.batch, m.all));
    m.hook.patch.start();
    m.hook.abort(true);
    CHECK_EQUAL(m.evaluation.compute(m.model, m.batch), GGML_STATUS_ABORTED);
    m.hook.abort(false);
    m.hook.stop();
    check_nodes_equal(m.evaluation.graph(), nodes);
    CHECK_EQUAL(m.evaluation.compute(m.model, m.batch), GGML_STATUS_SUCCESS);
}
