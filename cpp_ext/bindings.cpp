// The Python module first_cpp._ext: thin, private, re-exported by the package where it is public.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "eval_hook.h"
#include "gguf_file.h"
#include "hidden_states.h"
#include "kv_pages.h"
#include "router_scores.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace first_cpp;

namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

std::vector<float> to_vector(const Floats & a) { return std::vector<float>(a.data(), a.data() + a.size()); }

template <typename T>
nb::object to_numpy(std::vector<T> values, std::vector<size_t> shape) {
    auto * owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void * p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(owned->data(), shape.size(), shape.data(), owner));
}

nb::object get_scalar(const GgufFile & file, int64_t id) {
    const gguf_context * g = file.get();
    switch (file.type(id)) {
        case GGUF_TYPE_UINT8:
            return nb::int_(gguf_get_val_u8(g, id));
        case GGUF_TYPE_INT8:
            return nb::int_(gguf_get_val_i8(g, id));
        case GGUF_TYPE_UINT16:
            return nb::int_(gguf_get_val_u16(g, id));
        case GGUF_TYPE_INT16:
            return nb::int_(gguf_get_val_i16(g, id));
        case GGUF_TYPE_UINT32:
            return nb::int_(gguf_get_val_u32(g, id));
        case GGUF_TYPE_INT32:
            return nb::int_(gguf_get_val_i32(g, id));
        case GGUF_TYPE_UINT64:
            return nb::int_(gguf_get_val_u64(g, id));
        case GGUF_TYPE_INT64:
            return nb::int_(gguf_get_val_i64(g, id));
        case GGUF_TYPE_FLOAT32:
            return nb::float_(gguf_get_val_f32(g, id));
        case GGUF_TYPE_FLOAT64:
            return nb::float_(gguf_get_val_f64(g, id));
        case GGUF_TYPE_BOOL:
            return nb::bool_(gguf_get_val_bool(g, id));
        case GGUF_TYPE_STRING: {
            const char * s = gguf_get_val_str(g, id);
            return nb::bytes(s, std::strlen(s));
        }
        default:
            throw nb::value_error("unknown GGUF type");
    }
}

template <typename T>
nb::object copy_array(const GgufFile & file, int64_t id) {
    const size_t n = gguf_get_arr_n(file.get(), id);
    const auto * data = static_cast<const T *>(gguf_get_arr_data(file.get(), id));
    return to_numpy(std::vector<T>(data, data + n), {n});
}

nb::object get_array(const GgufFile & file, int64_t id) {
    switch (file.element_type(id)) {
        case GGUF_TYPE_UINT8:
            return copy_array<uint8_t>(file, id);
        case GGUF_TYPE_BOOL:
        case GGUF_TYPE_INT8:
            return copy_array<int8_t>(file, id);
        case GGUF_TYPE_UINT16:
            return copy_array<uint16_t>(file, id);
        case GGUF_TYPE_INT16:
            return copy_array<int16_t>(file, id);
        case GGUF_TYPE_UINT32:
            return copy_array<uint32_t>(file, id);
        case GGUF_TYPE_INT32:
            return copy_array<int32_t>(file, id);
        case GGUF_TYPE_UINT64:
            return copy_array<uint64_t>(file, id);
        case GGUF_TYPE_INT64:
            return copy_array<int64_t>(file, id);
        case GGUF_TYPE_FLOAT32:
            return copy_array<float>(file, id);
        case GGUF_TYPE_FLOAT64:
            return copy_array<double>(file, id);
        case GGUF_TYPE_STRING: {
            nb::list strings;
            for (size_t i = 0; i < gguf_get_arr_n(file.get(), id); ++i) {
                const char * s = gguf_get_arr_str(file.get(), id, i);
                strings.append(nb::bytes(s, std::strlen(s)));
            }
            return strings;
        }
        default:
            throw nb::value_error("unknown GGUF array type");
    }
}

int64_t existing(const GgufFile & file, const std::string & key) {
    const int64_t id = file.find(key);
    if (id < 0) {
        throw nb::key_error(key.c_str());
    }
    return id;
}

// A matrix whose data the caller writes after the metadata.
void add_tensor_f16(GgufFile & file, const std::string & name, int64_t n_in, int64_t n_out) {
    if (name.size() >= GGML_MAX_NAME || n_in < 1 || n_out < 1 || gguf_find_tensor(file.get(), name.c_str()) >= 0) {
        throw nb::value_error("a tensor needs a new name below 64 bytes and sizes above 0");
    }
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
        ggml_init(ggml_init_params{ggml_tensor_overhead(), nullptr, /*no_alloc=*/true}), &ggml_free);
    ggml_tensor * t = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, n_in, n_out);
    ggml_set_name(t, name.c_str());
    gguf_add_tensor(file.get(), t);
}

ggml_type type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (const char * known = ggml_type_name(type); known != nullptr && name == known && ggml_blck_size(type) > 0) {
            return type;
        }
    }
    throw nb::value_error(("ggml has no type " + name).c_str());
}

// Rows of floats as the bytes of a ggml type, by ggml's own quantiser.
nb::bytes quantize(const std::string & type_name,
                   const nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> & rows) {
    const ggml_type type = type_named(type_name);
    const auto n_rows = static_cast<int64_t>(rows.shape(0));
    const auto n = static_cast<int64_t>(rows.shape(1));
    const bool known = ggml_is_quantized(type) || type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
    if (!known || ggml_quantize_requires_imatrix(type) || n % ggml_blck_size(type) != 0) {
        throw nb::value_error(("rows of " + std::to_string(n) + " values cannot be quantised as " + type_name).c_str());
    }
    std::vector<char> out(ggml_row_size(type, n) * static_cast<size_t>(n_rows));
    ggml_quantize_chunk(type, rows.data(), out.data(), 0, n_rows, n, nullptr);
    return nb::bytes(out.data(), out.size());
}

void bind_gguf(nb::module_ & m) {
    m.def("quantize", &quantize, "type"_a, "rows"_a);
    m.def("block_size", [](const std::string & name) { return ggml_blck_size(type_named(name)); }, "type"_a);
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
        .def(
            "get",
            [](const GgufFile & f, const std::string & key) {
                const int64_t id = existing(f, key);
                return f.type(id) == GGUF_TYPE_ARRAY ? get_array(f, id) : get_scalar(f, id);
            },
            "key"_a)
        .def(
            "count",
            [](const GgufFile & f, const std::string & key) {
                const int64_t id = existing(f, key);
                return f.type(id) == GGUF_TYPE_ARRAY ? gguf_get_arr_n(f.get(), id) : size_t{1};
            },
            "key"_a)
        .def("set_u32", [](GgufFile & f, const std::string & key, uint32_t v) { gguf_set_val_u32(f.get(), key.c_str(), v); })
        .def("set_f32", [](GgufFile & f, const std::string & key, float v) { gguf_set_val_f32(f.get(), key.c_str(), v); })
        .def("set_str", [](GgufFile & f, const std::string & key,
                           const std::string & v) { gguf_set_val_str(f.get(), key.c_str(), v.c_str()); })
        .def("set_f32_array",
             [](GgufFile & f, const std::string & key, const Floats & v) {
                 gguf_set_arr_data(f.get(), key.c_str(), GGUF_TYPE_FLOAT32, v.data(), v.size());
             })
        .def("set_bool_array",
             [](GgufFile & f, const std::string & key, const std::vector<bool> & v) {
                 const std::vector<int8_t> bytes(v.begin(), v.end());
                 gguf_set_arr_data(f.get(), key.c_str(), GGUF_TYPE_BOOL, bytes.data(), bytes.size());
             })
        .def("remove", [](GgufFile & f, const std::string & key) { return gguf_remove_key(f.get(), key.c_str()) >= 0; })
        .def(
            "set_tensor_f32",
            [](GgufFile & f, const std::string & name) {
                if (gguf_find_tensor(f.get(), name.c_str()) < 0) {
                    throw nb::key_error(name.c_str());
                }
                gguf_set_tensor_type(f.get(), name.c_str(), GGML_TYPE_F32);
            },
            "name"_a)
        .def("add_tensor_f16",
             [](GgufFile & f, const std::string & name, int64_t n_in, int64_t n_out) { add_tensor_f16(f, name, n_in, n_out); })
        .def("metadata", [](const GgufFile & f) {
            const std::vector<char> bytes = f.metadata();
            return nb::bytes(bytes.data(), bytes.size());
        });
}

void bind_sinks(nb::module_ & m) {
    nb::class_<ResidualSink>(m, "ResidualSink");

    nb::class_<RouterScores, ResidualSink>(m, "RouterScores")
        .def(
            "__init__",
            [](RouterScores * self, const Floats & weight, const Floats & bias, float norm_eps) {
                new (self) RouterScores(to_vector(weight), to_vector(bias), norm_eps);
            },
            "weight"_a, "bias"_a, "norm_eps"_a)
        .def("seek", &RouterScores::seek, "position"_a)
        .def("__len__", &RouterScores::size)
        .def("scores",
             [](const RouterScores & s) {
                 const auto n_layer = static_cast<size_t>(s.n_layer());
                 std::vector<float> kept(s.scores().begin(),
                                         s.scores().begin() + static_cast<std::ptrdiff_t>(s.size() * n_layer));
                 return to_numpy(std::move(kept), {s.size(), n_layer});
             })
        .def(
            "load", [](RouterScores & s, const Floats & scores) { s.load(to_vector(scores)); }, "scores"_a)
        .def_prop_ro("not_finite", &RouterScores::not_finite)
        .def_prop_ro("seconds", &RouterScores::seconds);

    nb::class_<HiddenStates, ResidualSink>(m, "HiddenStates")
        .def(nb::init<int>(), "n_points"_a)
        .def("points", [](const HiddenStates & h) {
            nb::list points;
            for (const auto & p : h.points()) {
                points.append(to_numpy(p, {p.size()}));
            }
            return points;
        });
}

void bind_hook(nb::module_ & m) {
    nb::class_<LayerLayout>(m, "LayerLayout")
        .def_ro("input", &LayerLayout::input)
        .def_ro("output", &LayerLayout::output)
        .def_ro("trouble", &LayerLayout::trouble)
        .def_ro("trouble_keeping", &LayerLayout::trouble_keeping)
        .def_ro("cache_is_shared", &LayerLayout::cache_is_shared);
    nb::enum_<Fate>(m, "Fate")
        .value("RUN", Fate::RUN)
        .value("LEAVE_OUT", Fate::LEAVE_OUT)
        .value("LEAVE_OUT_KEEP_CACHE", Fate::LEAVE_OUT_KEEP_CACHE);
    nb::class_<CacheTensor>(m, "CacheTensor")
        .def_ro("layer", &CacheTensor::layer)
        .def_ro("name", &CacheTensor::name)
        .def_ro("address", &CacheTensor::address)
        .def_ro("n_bytes", &CacheTensor::n_bytes);
    nb::class_<Layout>(m, "Layout")
        .def_ro("layers", &Layout::layers)
        .def_ro("cache", &Layout::cache)
        .def_ro("n_nodes", &Layout::n_nodes);

    nb::class_<EvalHook>(m, "EvalHook")
        .def(nb::init<>())
        .def_prop_ro_static("callback", [](nb::handle) { return reinterpret_cast<uintptr_t>(&EvalHook::callback); })
        .def_prop_ro_static("abort_callback", [](nb::handle) { return reinterpret_cast<uintptr_t>(&EvalHook::aborted); })
        .def("abort", &EvalHook::abort, "on"_a)
        .def_prop_ro("user_data", [](EvalHook & h) { return reinterpret_cast<uintptr_t>(&h); })
        .def(
            "probe_begin", [](EvalHook & h, int n_layer) { h.probe.begin(n_layer); }, "n_layer"_a)
        .def("probe_finish", [](EvalHook & h) { return h.probe.finish(); })
        .def(
            "set_outputs", [](EvalHook & h, std::vector<std::string> names) { h.patch.set_outputs(std::move(names)); },
            "names"_a)
        .def(
            "set_fates", [](EvalHook & h, std::vector<Fate> fates) { h.patch.set_fates(std::move(fates)); }, "fates"_a)
        .def("start_leaving_out",
             [](EvalHook & h) {
                 h.take_error();  // of an evaluation that ended in another way
                 h.patch.start();
             })
        // The caller keeps the sink alive until stop().
        .def(
            "read",
            [](EvalHook & h, ResidualSink & sink, std::vector<std::string> names) {
                h.take_error();
                h.reader.read(sink, std::move(names));
            },
            "sink"_a, "names"_a)
        .def("stop", &EvalHook::stop)
        .def("take_error", &EvalHook::take_error)
        .def_prop_ro("layers_left_out", [](const EvalHook & h) { return h.patch.layers_left_out(); });
}

}  // namespace

NB_MODULE(_ext, m) {
    nb::set_leak_warnings(false);  // an object still alive when the interpreter exits is no leak of ours
    m.attr("built_with_llama_cpp_python") = FIRST_CPP_LLAMA_CPP_PYTHON_VERSION;
    m.attr("built_with_ggml") = FIRST_CPP_GGML_VERSION;
    m.def("ggml_version", [] { return std::string(ggml_version()); });
    m.def("release_pages", &release_pages, "address"_a, "n_bytes"_a);
    bind_gguf(m);
    bind_sinks(m);
    bind_hook(m);
}
