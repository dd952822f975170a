// Random small models of layers, whose graphs are built as llama.cpp builds its models' graphs.
//
// The same builder makes the graph with every layer, which is patched, and the graph without some layers, which
// says what the patched one must compute.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "choices.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "graph_patch.h"

namespace first_cpp::testing {

enum class Work { Sequential, Parallel, FeedForward, State };

// How a layer's output comes from its input and its work.
enum class Sum {
    Plain,
    Swapped,
    InPlace,
    Reshaped,
    Viewed,
    Copied,
    Scaled,  // from here on not input plus work
    Normed,
    ScaledInput,
};

enum class CacheWrite { SetRows, Transposed, Copy };

// What a layer reads beside its input.
enum class Reads { Nothing, Embedding, OwnRows, InsideOther, CacheOfOther };

enum class Embedding { Rows, Selected, Scaled, Positioned, Normed };

// Which rows the last layer keeps, and where.
enum class Rows { All, OfTerms, OfSum };

enum class Names { Usual, None, Odd };

// How the layers' outputs are named: as most of llama.cpp's models do, in another way, or not at all.
enum class OutputNames { Usual, Other, None };

struct LayerSpec {
    Work work = Work::Sequential;
    Sum sum = Sum::Plain;
    CacheWrite write = CacheWrite::SetRows;
    Reads reads = Reads::Nothing;
    int other = 0;  // the layer that InsideOther and CacheOfOther read
    bool rope = false;
    bool norm_after = false;  // of the work
    bool in_place_work = false;
    bool bias = false;

    bool additive() const { return sum < Sum::Scaled; }
    bool attends() const { return work == Work::Sequential || work == Work::Parallel; }
};

struct ModelSpec {
    int n_embd = 8;
    int n_cells = 8;  // of the cache
    Embedding embedding = Embedding::Rows;
    Rows rows = Rows::All;
    Names names = Names::Usual;
    OutputNames output_names = OutputNames::Usual;
    bool half_mask = false;
    bool half_cache = false;
    bool rope_factors = false;
    bool random_order = false;
    bool late_writes = false;  // random orders may put a layer's cache writes after its output
    uint64_t seed = 0;         // of values and orders
    std::vector<LayerSpec> layers;

    int n_layer() const { return static_cast<int>(layers.size()); }
    // Whether the output of `layer` is its input plus its work, and no other layer reads in it, or what it writes to
    // its cache. `keep_cache`: that it does go on writing.
    bool separable(int layer, bool keep_cache) const;
};

ModelSpec draw_model(Choices & choices);

// The spec in a line, for messages.
std::string describe(const ModelSpec & spec);

// One evaluation: n_tokens new positions from `begin` on, the results of some of them.
struct Batch {
    int begin = 0;
    int n_tokens = 1;
    std::vector<int32_t> out_ids{0};
};

Batch draw_batch(Choices & choices, const ModelSpec & spec);

using LayerActions = std::vector<LayerAction>;  // one a layer

struct Graph {
    ggml_cgraph * nodes = nullptr;
    ggml_tensor * result = nullptr;
    std::vector<ggml_tensor *> outputs;  // per layer; null where it is skipped
    // inputs
    ggml_tensor * tokens = nullptr;
    ggml_tensor * embeddings = nullptr;
    ggml_tensor * positions = nullptr;
    ggml_tensor * cells = nullptr;
    ggml_tensor * cells_transposed = nullptr;
    ggml_tensor * mask = nullptr;
    ggml_tensor * out_ids = nullptr;
};

// Weights and caches, and the graphs over them.
class Model {
public:
    Model(ModelSpec spec, ggml_backend_t backend);

    const ModelSpec & spec() const { return spec_; }
    Graph build(ggml_context * context, const Batch & batch, const LayerActions & actions) const;
    void set_inputs(const Graph & graph, const Batch & batch) const;

    // The bytes of all caches, in a fixed order.
    std::vector<uint8_t> caches() const;
    void set_caches(const std::vector<uint8_t> & bytes) const;

private:
    friend class Builder;

    struct LayerWeights {
        ggml_tensor *norm, *q, *k, *v, *o, *ffn_norm, *up, *gate, *down, *after, *bias, *side, *state;
        ggml_tensor *cache_k = nullptr, *cache_v = nullptr, *cache_s = nullptr;
    };

    void make_tensors();
    void fill(ggml_backend_t backend);

    ModelSpec spec_;
    ggml_context_ptr context_;
    ggml_backend_buffer_ptr buffer_;
    ggml_tensor *embedding_ = nullptr, *position_embedding_ = nullptr, *own_rows_ = nullptr, *norm_ = nullptr,
                *output_ = nullptr, *factors_ = nullptr;
    std::vector<LayerWeights> layers_;
    std::vector<ggml_tensor *> caches_;
};

constexpr int n_vocab = 16;
constexpr size_t most_nodes = 1024;

}  // namespace first_cpp::testing
