// The Python module first_cpp._ext: thin, private, re-exported by the package where it is public. _ext.pyi has its types.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>

#include "eval_hook.h"
#include "gguf_file.h"
#include "hidden_states.h"
#include "kv_pages.h"
#include "python_values.h"
#include "quantize.h"
#include "router_scores.h"
#include "sampler.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace first_cpp;

namespace {

void bind_gguf(nb::module_ & m) {
    nb::exception<MissingName>(m, "MissingName", PyExc_KeyError);
    nb::class_<GgufTensor>(m, "GgufTensor")
        .def_ro("name", &GgufTensor::name)
        .def_ro("type", &GgufTensor::type)
        .def_ro("shape", &GgufTensor::shape)
        .def_ro("offset", &GgufTensor::offset)
        .def_ro("n_bytes", &GgufTensor::n_bytes);
    nb::class_<GgufFile>(m, "GgufFile")
        .def(nb::init<>())
        .def(nb::init<const std::string &>(), "path"_a, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("version", &GgufFile::version)
        .def_prop_ro("alignment", &GgufFile::alignment)
        .def_prop_ro("data_offset", &GgufFile::data_offset)
        .def("keys", &GgufFile::keys)
        .def("tensors", &GgufFile::tensors)
        .def("kind", &GgufFile::kind, "key"_a)
        .def("get", &get_value, "key"_a)
        .def("count", &GgufFile::count, "key"_a)
        .def("set_u32", &GgufFile::set_u32, "key"_a, "value"_a)
        .def("set_f32", &GgufFile::set_f32, "key"_a, "value"_a)
        .def("set_str", &GgufFile::set_str, "key"_a, "value"_a)
        .def(
            "set_f32_array",
            [](GgufFile & f, const std::string & key, const FloatArray & v) { f.set_f32_array(key, v.data(), v.size()); },
            "key"_a, "value"_a)
        .def("set_u32_array", &GgufFile::set_u32_array, "key"_a, "values"_a)
        .def("set_bool_array", &GgufFile::set_bool_array, "key"_a, "value"_a)
        .def("remove", &GgufFile::remove, "key"_a)
        .def("set_tensor_f32", &GgufFile::set_tensor_f32, "name"_a)
        .def("add_tensor_f16", &GgufFile::add_tensor_f16, "name"_a, "n_in"_a, "n_out"_a)
        .def("metadata", [](const GgufFile & f) { return to_bytes(f.metadata()); });
}

void bind_quantize(nb::module_ & m) {
    m.def(
        "quantize",
        [](const std::string & type, const FloatMatrix & rows) {
            const auto n_rows = static_cast<int64_t>(rows.shape(0));
            return to_bytes(quantize(type, rows.data(), n_rows, static_cast<int64_t>(rows.shape(1))));
        },
        "type"_a, "rows"_a);
    m.def("block_size", &block_size, "type"_a);
}

void bind_hidden_state_readers(nb::module_ & m) {
    nb::class_<HiddenStateReader>(m, "HiddenStateReader");
    nb::class_<Probe>(m, "Probe")
        .def(
            "__init__",
            [](Probe * self, size_t point, size_t column, const FloatArray & weight, float bias, float norm_eps, bool sigmoid) {
                new (self) Probe{point, column, to_vector(weight), bias, norm_eps, sigmoid};
            },
            "point"_a, "column"_a, "weight"_a, "bias"_a, "norm_eps"_a, "sigmoid"_a);
    nb::class_<RouterScores, HiddenStateReader>(m, "RouterScores")
        .def(nb::init<std::vector<Probe>>(), "probes"_a)
        .def("seek", &RouterScores::seek, "position"_a)
        .def("__len__", &RouterScores::size)
        .def_prop_ro("n_columns", &RouterScores::n_columns)
        .def("scores", [](const RouterScores & s) { return to_numpy(s.scores(), {s.size(), s.n_columns()}); })
        .def(
            "load", [](RouterScores & s, const FloatArray & scores) { s.load(to_vector(scores)); }, "scores"_a)
        .def_prop_ro("not_finite", &RouterScores::not_finite)
        .def_prop_ro("seconds", &RouterScores::seconds);
    nb::class_<HiddenStates, HiddenStateReader>(m, "HiddenStates")
        .def(nb::init<int>(), "n_points"_a)
        .def("points", [](const HiddenStates & h) {
            nb::list points;
            for (const auto & p : h.points()) {
                points.append(to_numpy(p, {p.size()}));
            }
            return points;
        });
}

void bind_layout(nb::module_ & m) {
    nb::class_<LayerLayout>(m, "LayerLayout")
        .def_ro("input", &LayerLayout::input)
        .def_ro("output", &LayerLayout::output)
        .def_ro("unskippable", &LayerLayout::unskippable)
        .def_ro("unskippable_keep_cache", &LayerLayout::unskippable_keep_cache)
        .def_ro("cache_is_shared", &LayerLayout::cache_is_shared);
    nb::class_<CacheTensor>(m, "CacheTensor")
        .def_ro("layer", &CacheTensor::layer)
        .def_ro("name", &CacheTensor::name)
        .def_ro("address", &CacheTensor::address)
        .def_ro("n_bytes", &CacheTensor::n_bytes);
    nb::class_<Layout>(m, "Layout")
        .def_ro("layers", &Layout::layers)
        .def_ro("cache", &Layout::cache)
        .def_ro("n_nodes", &Layout::n_nodes);
}

void bind_hook(nb::module_ & m) {
    nb::enum_<LayerAction>(m, "LayerAction")
        .value("RUN", LayerAction::RUN)
        .value("SKIP", LayerAction::SKIP)
        .value("SKIP_KEEP_CACHE", LayerAction::SKIP_KEEP_CACHE);
    nb::class_<EvalHook>(m, "EvalHook")
        .def(nb::init<>())
        .def_prop_ro_static("callback", [](nb::handle) { return reinterpret_cast<uintptr_t>(&EvalHook::callback); })
        .def_prop_ro_static("abort_callback", [](nb::handle) { return reinterpret_cast<uintptr_t>(&EvalHook::aborted); })
        .def_prop_ro("user_data", [](EvalHook & h) { return reinterpret_cast<uintptr_t>(&h); })
        .def(
            "probe_begin", [](EvalHook & h, int n_layer) { h.probe.begin(n_layer); }, "n_layer"_a)
        .def("probe_finish", [](EvalHook & h) { return h.probe.finish(); })
        .def(
            "set_outputs", [](EvalHook & h, const std::vector<std::string> & names) { h.patch.set_outputs(names); }, "names"_a)
        .def(
            "set_actions", [](EvalHook & h, const std::vector<LayerAction> & actions) { h.patch.set_actions(actions); },
            "actions"_a)
        .def("start_skipping", &EvalHook::start_skipping)
        .def("start_reading", &EvalHook::start_reading, "reader"_a,
             "names"_a)  // the caller keeps the reader alive until stop()
        .def("abort", &EvalHook::abort, "on"_a)
        .def("stop", &EvalHook::stop)
        .def("take_error", &EvalHook::take_error)
        .def_prop_ro("layers_skipped", [](const EvalHook & h) { return h.patch.layers_skipped(); });
}

template <typename F>
F at(uintptr_t address) {
    return reinterpret_cast<F>(address);
}

void bind_sampler(nb::module_ & m) {
    using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    nb::class_<Sampler>(m, "Sampler")
        .def(
            "__init__",
            [](Sampler * self, uintptr_t get_logits_ith, uintptr_t chain_n, uintptr_t chain_get, uintptr_t apply,
               uintptr_t accept, size_t n_vocab) {
                const SamplingFunctions functions{
                    at<decltype(SamplingFunctions::get_logits_ith)>(get_logits_ith),
                    at<decltype(SamplingFunctions::chain_n)>(chain_n), at<decltype(SamplingFunctions::chain_get)>(chain_get),
                    at<decltype(SamplingFunctions::apply)>(apply), at<decltype(SamplingFunctions::accept)>(accept)};
                new (self) Sampler(functions, n_vocab);
            },
            "get_logits_ith"_a, "chain_n"_a, "chain_get"_a, "apply"_a, "accept"_a, "n_vocab"_a)
        .def(
            "sample",
            [](Sampler & s, uintptr_t chain, uintptr_t ctx, int32_t row, int32_t n_before, const std::optional<Mask> & mask) {
                const uint32_t * bits = mask ? mask->data() : nullptr;
                if (mask && mask->size() * 32 < s.n_vocab()) {
                    throw nb::value_error("the mask has fewer bits than the vocabulary has tokens");
                }
                const nb::gil_scoped_release released;
                return s.sample(at<llama_sampler *>(chain), at<llama_context *>(ctx), row, n_before, bits);
            },
            "chain"_a, "ctx"_a, "row"_a, "n_before"_a, "mask"_a = nb::none())
        .def_prop_ro_static("NO_TOKEN", [](nb::handle) { return int{Sampler::NO_TOKEN}; })
        .def_prop_ro_static("NOT_FINITE", [](nb::handle) { return int{Sampler::NOT_FINITE}; });
}

}  // namespace

NB_MODULE(_ext, m) {
    nb::set_leak_warnings(false);  // an object still alive when the interpreter exits is no leak of ours
    m.attr("built_with_llama_cpp_python") = FIRST_CPP_LLAMA_CPP_PYTHON_VERSION;
    m.attr("built_with_ggml") = FIRST_CPP_GGML_VERSION;
    m.def("ggml_version", [] { return std::string(ggml_version()); });
    m.def("release_pages", &release_pages, "address"_a, "n_bytes"_a);
    bind_gguf(m);
    bind_quantize(m);
    bind_hidden_state_readers(m);
    bind_layout(m);
    bind_hook(m);
    bind_sampler(m);
}
