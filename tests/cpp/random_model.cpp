// Random small models of layers, whose graphs are built as llama.cpp builds its models' graphs.
#include "random_model.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "check.h"

namespace first_cpp::testing {

namespace {

constexpr int n_heads = 2;

Sum draw_sum(Choices & choices) {
    constexpr auto additive = static_cast<uint32_t>(Sum::Scaled);
    if (choices.one_in(12)) {
        return choices.one_of({Sum::Scaled, Sum::Normed, Sum::ScaledInput});
    }
    return static_cast<Sum>(choices.below(additive));
}

LayerSpec draw_layer(Choices & choices, const ModelSpec & spec) {
    LayerSpec layer;
    const int il = spec.n_layer();
    layer.work = choices.one_of({Work::Sequential, Work::Parallel, Work::FeedForward, Work::State});
    layer.sum = draw_sum(choices);
    layer.write = choices.one_of({CacheWrite::SetRows, CacheWrite::Transposed, CacheWrite::Copy});
    layer.rope = choices.one_in(2);
    layer.norm_after = choices.one_in(3);
    layer.in_place_work = choices.one_in(3);
    layer.bias = choices.one_in(3);
    layer.reads = choices.one_of({Reads::Nothing, Reads::Nothing, Reads::Nothing, Reads::Embedding, Reads::OwnRows,
                                  Reads::OwnRows, Reads::InsideOther, Reads::CacheOfOther});
    layer.other = il > 0 ? choices.between(0, il - 1) : 0;
    const bool other_exists = il > 0;
    if (layer.reads == Reads::InsideOther && !other_exists) {
        layer.reads = Reads::Nothing;
    }
    if (layer.reads == Reads::CacheOfOther) {
        if (other_exists && layer.attends() && spec.layers[static_cast<size_t>(layer.other)].attends() &&
            spec.layers[static_cast<size_t>(layer.other)].reads != Reads::CacheOfOther) {
            layer.write = spec.layers[static_cast<size_t>(layer.other)].write;
        } else {
            layer.reads = Reads::Nothing;
        }
    }
    return layer;
}

void odd_name(ggml_tensor * t, uint64_t n) {
    static const char * const names[] = {
        "",         "l_out",     "l_out-",  "l_out-x",    "l_out-1 (view)",
        " l_out-0", "l_out--1",  "xl_out-", "attn_norm",  "l_out-99999999999999999999",
        "\xff\xfe", "embd",      "cachet",  "%s%n",       "ffn_inp-0",
        "L_OUT-0",  "l_out-0 5", "node_1",  "l_out-1000", "sixty-three bytes is as long as the name of a tensor can ever be"};
    ggml_set_name(t, names[n % (sizeof(names) / sizeof(names[0]))]);
}

}  // namespace

bool ModelSpec::separable(int layer, bool keep_cache) const {
    for (int il = layer + 1; il < n_layer(); ++il) {
        const LayerSpec & later = layers[static_cast<size_t>(il)];
        if (later.other == layer &&
            (later.reads == Reads::InsideOther || (later.reads == Reads::CacheOfOther && !keep_cache))) {
            return false;
        }
    }
    return layers[static_cast<size_t>(layer)].additive();
}

ModelSpec draw_model(Choices & choices) {
    ModelSpec spec;
    spec.n_embd = 8 * choices.between(1, 3);
    spec.n_cells = choices.between(4, 12);
    spec.embedding = static_cast<Embedding>(choices.below(5));
    spec.rows = static_cast<Rows>(choices.below(3));
    spec.names = static_cast<Names>(choices.below(3));
    spec.output_names = choices.one_of({OutputNames::Usual, OutputNames::Usual, OutputNames::Other, OutputNames::None});
    spec.half_mask = choices.one_in(2);
    spec.half_cache = choices.one_in(2);
    spec.rope_factors = choices.one_in(2);
    spec.random_order = choices.one_in(2);
    spec.late_writes = choices.one_in(8);
    spec.seed = choices.below(1U << 16);
    for (int n_layer = choices.between(1, 6); spec.n_layer() < n_layer;) {
        spec.layers.push_back(draw_layer(choices, spec));
    }
    // What a later layer reads must not change in place.
    const auto reads_embedding = [](const LayerSpec & l) { return l.reads == Reads::Embedding; };
    if (std::any_of(spec.layers.begin(), spec.layers.end(), reads_embedding)) {
        for (LayerSpec & layer : spec.layers) {
            layer.sum = layer.sum == Sum::InPlace ? Sum::Plain : layer.sum;
        }
    }
    return spec;
}

std::string describe(const ModelSpec & spec) {
    static const char * const works[] = {"sequential", "parallel", "feed-forward", "state"};
    static const char * const sums[] = {"plain",  "swapped", "in-place", "reshaped",    "viewed",
                                        "copied", "scaled",  "normed",   "scaled-input"};
    static const char * const reads[] = {"", " reads-embedding", " reads-own-rows", " reads-inside-", " reads-cache-of-"};
    static const char * const embeddings[] = {"rows", "selected", "scaled", "positioned", "normed"};
    static const char * const rows[] = {"all", "of-terms", "of-sum"};
    std::ostringstream text;
    text << "embedding " << embeddings[static_cast<int>(spec.embedding)] << ", rows " << rows[static_cast<int>(spec.rows)]
         << (spec.random_order ? ", random order" : "") << (spec.late_writes ? ", late writes" : "")
         << (spec.output_names == OutputNames::None ? ", unnamed outputs" : "")
         << (spec.output_names == OutputNames::Other ? ", outputs named otherwise" : "");
    for (int il = 0; il < spec.n_layer(); ++il) {
        const LayerSpec & layer = spec.layers[static_cast<size_t>(il)];
        text << "; " << il << ": " << works[static_cast<int>(layer.work)] << " " << sums[static_cast<int>(layer.sum)]
             << reads[static_cast<int>(layer.reads)];
        if (layer.reads == Reads::InsideOther || layer.reads == Reads::CacheOfOther) {
            text << layer.other;
        }
    }
    return text.str();
}

Batch draw_batch(Choices & choices, const ModelSpec & spec) {
    Batch batch;
    batch.n_tokens = choices.one_in(2) ? 1 : choices.between(1, spec.n_cells);
    batch.begin = choices.between(0, spec.n_cells - batch.n_tokens);
    batch.out_ids.clear();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (choices.one_in(2)) {
            batch.out_ids.push_back(i);
        }
    }
    return batch;
}

Model::Model(ModelSpec spec, ggml_backend_t backend) : spec_(std::move(spec)) {
    context_.reset(ggml_init(ggml_init_params{512 * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true}));
    make_tensors();
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend));
    fill(backend);
}

void Model::make_tensors() {
    ggml_context * c = context_.get();
    const int64_t d = spec_.n_embd;
    const int64_t n_layer = spec_.n_layer();
    const auto matrix = [&](int64_t n_in, int64_t n_out) { return ggml_new_tensor_2d(c, GGML_TYPE_F32, n_in, n_out); };
    const auto vector = [&] { return ggml_new_tensor_1d(c, GGML_TYPE_F32, d); };
    const auto cache = [&](const char * name, int64_t il, int64_t rows, ggml_type type) {
        ggml_tensor * t = ggml_new_tensor_2d(c, type, d, rows);
        ggml_format_name(t, "cache_%s_l%d", name, static_cast<int>(il));
        caches_.push_back(t);
        return t;
    };
    embedding_ = matrix(d, n_vocab);
    position_embedding_ = matrix(d, spec_.n_cells);
    own_rows_ = matrix(d * n_layer, n_vocab);
    norm_ = vector();
    output_ = matrix(d, n_vocab);
    factors_ = ggml_new_tensor_1d(c, GGML_TYPE_F32, d / n_heads / 2);
    const ggml_type type = spec_.half_cache ? GGML_TYPE_F16 : GGML_TYPE_F32;
    for (int64_t il = 0; il < n_layer; ++il) {
        LayerWeights w{vector(), matrix(d, d),     matrix(d, d),     matrix(d, d),     matrix(d, d),
                       vector(), matrix(d, 2 * d), matrix(d, 2 * d), matrix(2 * d, d), vector(),
                       vector(), matrix(d, d),     matrix(d, d)};
        for (ggml_tensor * t :
             {w.norm, w.q, w.k, w.v, w.o, w.ffn_norm, w.up, w.gate, w.down, w.after, w.bias, w.side, w.state}) {
            ggml_format_name(t, "blk.%d.weight", static_cast<int>(il));
        }
        const LayerSpec & layer = spec_.layers[static_cast<size_t>(il)];
        if (layer.attends() && layer.reads != Reads::CacheOfOther) {
            w.cache_k = cache("k", il, spec_.n_cells, type);
            w.cache_v = cache("v", il, spec_.n_cells, type);
        }
        if (layer.work == Work::State) {
            w.cache_s = cache("s", il, 1, GGML_TYPE_F32);
        }
        layers_.push_back(w);
    }
}

// Uniform values, small enough that nothing overflows.
void Model::fill(ggml_backend_t) {
    std::mt19937 random(static_cast<uint32_t>(spec_.seed));
    for (ggml_tensor * t = ggml_get_first_tensor(context_.get()); t != nullptr; t = ggml_get_next_tensor(context_.get(), t)) {
        std::vector<float> values(static_cast<size_t>(ggml_nelements(t)));
        for (float & value : values) {
            value = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
            value = t == factors_ ? std::fabs(value) + 0.5F : value;
        }
        if (t->type == GGML_TYPE_F16) {
            std::vector<ggml_fp16_t> half(values.size());
            ggml_fp32_to_fp16_row(values.data(), half.data(), ggml_nelements(t));
            ggml_backend_tensor_set(t, half.data(), 0, ggml_nbytes(t));
        } else {
            ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
        }
    }
}

std::vector<uint8_t> Model::caches() const {
    std::vector<uint8_t> bytes;
    for (const ggml_tensor * t : caches_) {
        const size_t begin = bytes.size();
        bytes.resize(begin + ggml_nbytes(t));
        ggml_backend_tensor_get(t, bytes.data() + begin, 0, ggml_nbytes(t));
    }
    return bytes;
}

void Model::set_caches(const std::vector<uint8_t> & bytes) const {
    size_t begin = 0;
    for (ggml_tensor * t : caches_) {
        ggml_backend_tensor_set(t, bytes.data() + begin, 0, ggml_nbytes(t));
        begin += ggml_nbytes(t);
    }
}

// Builds one graph.
class Builder {
public:
    Builder(const Model & model, ggml_context * context, const Batch & batch)
        : model_(model), spec_(model.spec()), c_(context), batch_(batch), d_(spec_.n_embd), n_tokens_(batch.n_tokens) {
        graph_.nodes = ggml_new_graph_custom(c_, most_nodes, false);
        n_used_ = batch.begin + batch.n_tokens;
    }

    Graph build(const LayerActions & actions) {
        make_inputs();
        ggml_tensor * x = embed();
        for (int il = 0; il < spec_.n_layer(); ++il) {
            const LayerAction action = actions[static_cast<size_t>(il)];
            const bool selects = spec_.rows != Rows::All && il + 1 == spec_.n_layer();
            selected_ = false;
            if (action != LayerAction::SKIP) {
                ggml_tensor * out = layer(il, x, selects);  // cache writes are in the graph from here on
                graph_.outputs.push_back(action == LayerAction::RUN ? out : nullptr);
            } else {
                graph_.outputs.push_back(nullptr);
                inside_.push_back(nullptr);
            }
            if (action == LayerAction::RUN) {
                x = graph_.outputs.back();
                name_output(x, il);
                ggml_build_forward_expand(graph_.nodes, x);
            } else if (selects) {
                x = rows(x);
            }
        }
        x = name(ggml_mul(c_, norm(x), model_.norm_), "result_norm");
        graph_.result = name(ggml_mul_mat(c_, model_.output_, x), "result_output");
        ggml_set_output(graph_.result);
        ggml_build_forward_expand(graph_.nodes, graph_.result);
        if (spec_.random_order) {
            shuffle();
        }
        return graph_;
    }

private:
    using LayerWeights = Model::LayerWeights;

    ggml_tensor * input(ggml_type type, int64_t n0, int64_t n1, const char * called) {
        ggml_tensor * t = ggml_new_tensor_2d(c_, type, n0, n1);
        ggml_set_input(t);
        ggml_set_name(t, called);
        return t;
    }

    void make_inputs() {
        graph_.tokens = input(GGML_TYPE_I32, n_tokens_, 1, "inp_tokens");
        graph_.embeddings = input(GGML_TYPE_F32, d_, n_tokens_, "inp_embd");
        graph_.positions = input(GGML_TYPE_I32, n_tokens_, 1, "inp_pos");
        graph_.cells = input(GGML_TYPE_I64, n_tokens_, 1, "k_idxs");
        graph_.cells_transposed = input(GGML_TYPE_I64, n_tokens_ * d_, 1, "v_idxs");
        graph_.mask = input(GGML_TYPE_F32, n_used_, n_tokens_, "kq_mask");
        graph_.out_ids = input(GGML_TYPE_I32, static_cast<int64_t>(batch_.out_ids.size()), 1, "out_ids");
    }

    ggml_tensor * name(ggml_tensor * t, const char * what) {
        ++n_named_;
        if (spec_.names == Names::Odd) {
            odd_name(t, n_named_ * 7 + spec_.seed);
        } else if (spec_.names == Names::Usual) {
            ggml_format_name(t, "%s-%d", what, static_cast<int>(graph_.outputs.size()));
        }
        return t;
    }

    void name_output(ggml_tensor * t, int il) {
        if (spec_.output_names == OutputNames::Usual) {
            ggml_format_name(t, "l_out-%d", il);
        } else if (spec_.output_names == OutputNames::Other) {
            ggml_format_name(t, "block_out-%d", il);
        }
    }

    ggml_tensor * norm(ggml_tensor * x) { return ggml_rms_norm(c_, x, 1e-5F); }

    ggml_tensor * rows(ggml_tensor * x) { return ggml_get_rows(c_, x, graph_.out_ids); }

    ggml_tensor * embed() {
        ggml_tensor * x = ggml_get_rows(c_, model_.embedding_, graph_.tokens);
        ggml_set_name(x, "embd");
        token_embedding_ = x;
        switch (spec_.embedding) {
            case Embedding::Rows:
                break;
            case Embedding::Selected: {
                ggml_tensor * ways[] = {x, ggml_scale(c_, graph_.embeddings, 1.0F)};
                x = token_embedding_ = ggml_build_forward_select(graph_.nodes, ways, 2, static_cast<int>(spec_.seed % 2));
                break;
            }
            case Embedding::Scaled:
                x = name(ggml_scale(c_, x, 1.5F), "inp_scaled");
                break;
            case Embedding::Positioned:
                x = name(ggml_add(c_, x, ggml_get_rows(c_, model_.position_embedding_, graph_.positions)), "inpL");
                break;
            case Embedding::Normed:
                x = name(ggml_mul(c_, norm(x), model_.norm_), "inp_norm");
                break;
        }
        return x;
    }

    // Nodes of no layer that the first layer in need of them brings into the graph.
    ggml_tensor * mask() {
        if (mask_ == nullptr) {
            mask_ = spec_.half_mask ? name(ggml_cast(c_, graph_.mask, GGML_TYPE_F16), "kq_mask_cast") : graph_.mask;
        }
        return mask_;
    }

    ggml_tensor * factors() {
        if (spec_.rope_factors && factors_ == nullptr) {
            factors_ = name(ggml_scale(c_, model_.factors_, 1.25F), "rope_factors");
        }
        return factors_;
    }

    ggml_tensor * own_rows() {
        if (own_rows_ == nullptr) {
            own_rows_ = name(ggml_get_rows(c_, model_.own_rows_, graph_.tokens), "per_layer_inputs");
        }
        return own_rows_;
    }

    ggml_tensor * rope(const LayerSpec & layer, ggml_tensor * x) {
        if (!layer.rope) {
            return x;
        }
        const int n_dims = static_cast<int>(d_) / n_heads;
        x = ggml_reshape_3d(c_, x, n_dims, n_heads, n_tokens_);
        x = name(ggml_rope_ext(c_, x, graph_.positions, factors(), n_dims, 0, 0, 10000.0F, 1.0F, 0.0F, 1.0F, 0.0F, 0.0F),
                 "rope");
        return ggml_reshape_2d(c_, x, d_, n_tokens_);
    }

    void write(ggml_tensor * node) { ggml_build_forward_expand(graph_.nodes, node); }

    void write_cache(const LayerSpec & layer, const LayerWeights & w, ggml_tensor * k, ggml_tensor * v) {
        write(k);
        write(v);
        if (layer.write == CacheWrite::Copy) {
            const auto target = [&](ggml_tensor * cache) {
                return ggml_view_2d(c_, cache, d_, n_tokens_, cache->nb[1], cache->nb[1] * static_cast<size_t>(batch_.begin));
            };
            write(ggml_cpy(c_, k, target(w.cache_k)));
            write(ggml_cpy(c_, v, target(w.cache_v)));
            return;
        }
        write(ggml_set_rows(c_, w.cache_k, k, graph_.cells));
        if (layer.write == CacheWrite::SetRows) {
            write(ggml_set_rows(c_, w.cache_v, v, graph_.cells));
            return;
        }
        ggml_tensor * cache = ggml_reshape_2d(c_, w.cache_v, 1, ggml_nelements(w.cache_v));
        write(ggml_set_rows(c_, cache, ggml_reshape_2d(c_, v, 1, ggml_nelements(v)), graph_.cells_transposed));
    }

    ggml_tensor * read_values(const LayerSpec & layer, ggml_tensor * cache) {
        if (layer.write == CacheWrite::Transposed) {
            const size_t row = ggml_type_size(cache->type) * static_cast<size_t>(spec_.n_cells);
            return ggml_view_2d(c_, cache, n_used_, d_, row, 0);
        }
        return ggml_cont(c_, ggml_transpose(c_, ggml_view_2d(c_, cache, d_, n_used_, cache->nb[1], 0)));
    }

    ggml_tensor * attention(int il, ggml_tensor * h) {
        const LayerSpec & layer = spec_.layers[static_cast<size_t>(il)];
        const LayerWeights & w = model_.layers_[static_cast<size_t>(il)];
        ggml_tensor * q = rope(layer, name(ggml_mul_mat(c_, w.q, h), "Qcur"));
        write(q);
        const LayerWeights & kept = layer.reads == Reads::CacheOfOther ? model_.layers_[static_cast<size_t>(layer.other)] : w;
        if (&kept == &w) {
            write_cache(layer, w, rope(layer, name(ggml_mul_mat(c_, w.k, h), "Kcur")), name(ggml_mul_mat(c_, w.v, h), "Vcur"));
        }
        ggml_tensor * k = ggml_view_2d(c_, kept.cache_k, d_, n_used_, kept.cache_k->nb[1], 0);
        ggml_tensor * kq = name(ggml_mul_mat(c_, k, q), "kq");
        kq = name(ggml_soft_max_ext(c_, kq, mask(), 0.5F, 0.0F), "kq_soft_max");
        ggml_tensor * kqv = name(ggml_mul_mat(c_, read_values(layer, kept.cache_v), kq), "kqv");
        return name(ggml_mul_mat(c_, w.o, kqv), "attn_out");
    }

    ggml_tensor * feed_forward(const LayerSpec & layer, const LayerWeights & w, ggml_tensor * h) {
        ggml_tensor * gate = name(ggml_mul_mat(c_, w.gate, h), "ffn_gate");
        gate = layer.in_place_work ? ggml_silu_inplace(c_, gate) : ggml_silu(c_, gate);
        ggml_tensor * up = name(ggml_mul_mat(c_, w.up, h), "ffn_up");
        return name(ggml_mul_mat(c_, w.down, ggml_mul(c_, gate, up)), "ffn_out");
    }

    ggml_tensor * state(const LayerWeights & w, ggml_tensor * h) {
        ggml_tensor * kept = name(ggml_scale(c_, ggml_view_1d(c_, w.cache_s, d_, 0), 0.5F), "state");
        ggml_tensor * last = ggml_view_1d(c_, h, d_, h->nb[1] * static_cast<size_t>(h->ne[1] - 1));
        write(ggml_cpy(c_, ggml_add(c_, kept, last), ggml_view_1d(c_, w.cache_s, d_, 0)));
        return name(ggml_mul_mat(c_, w.state, ggml_add(c_, h, kept)), "ssm_out");
    }

    // What the layer reads beside its input, as a term of its work; null for nothing.
    ggml_tensor * side(int il) {
        const LayerSpec & layer = spec_.layers[static_cast<size_t>(il)];
        ggml_tensor * read = nullptr;
        switch (layer.reads) {
            case Reads::Embedding:
                read = token_embedding_;
                break;
            case Reads::OwnRows: {
                ggml_tensor * all = own_rows();
                read = ggml_cont(
                    c_, ggml_view_2d(c_, all, d_, n_tokens_, all->nb[1], sizeof(float) * static_cast<size_t>(il * d_)));
                break;
            }
            case Reads::InsideOther:
                read = inside_[static_cast<size_t>(layer.other)];
                break;
            default:
                break;
        }
        if (read == nullptr) {
            return nullptr;
        }
        read = selected_ ? rows(read) : read;
        return name(ggml_mul_mat(c_, model_.layers_[static_cast<size_t>(il)].side, read), "side");
    }

    ggml_tensor * finish_work(int il, ggml_tensor * work) {
        const LayerSpec & layer = spec_.layers[static_cast<size_t>(il)];
        const LayerWeights & w = model_.layers_[static_cast<size_t>(il)];
        if (ggml_tensor * t = side(il); t != nullptr) {
            work = ggml_add(c_, work, t);
        }
        if (layer.norm_after) {
            work = ggml_mul(c_, norm(work), w.after);
        }
        if (layer.bias) {
            work = layer.in_place_work ? ggml_add_inplace(c_, work, w.bias) : ggml_add(c_, work, w.bias);
        }
        return name(work, "work");
    }

    ggml_tensor * sum(const LayerSpec & layer, ggml_tensor * x, ggml_tensor * work) {
        const int64_t n_rows = x->ne[1];
        switch (layer.sum) {
            case Sum::Plain:
                return ggml_add(c_, x, work);
            case Sum::Swapped:
                return ggml_add(c_, work, x);
            case Sum::InPlace:
                return ggml_add_inplace(c_, x, work);
            case Sum::Reshaped:
                return ggml_reshape_2d(c_, ggml_reshape_3d(c_, ggml_add(c_, x, work), d_ / 2, 2, n_rows), d_, n_rows);
            case Sum::Viewed:
                return ggml_view_2d(c_, ggml_add(c_, x, work), d_, n_rows, x->nb[1], 0);
            case Sum::Copied:
                return ggml_cont(c_, ggml_add(c_, x, work));
            case Sum::Scaled:
                return ggml_scale(c_, ggml_add(c_, x, work), 0.75F);
            case Sum::Normed:
                return norm(ggml_add(c_, x, work));
            case Sum::ScaledInput:
                break;
        }
        return ggml_add(c_, ggml_scale(c_, x, 0.75F), work);
    }

    // Keeps the rows that become outputs, of both terms or of their sum.
    void select(ggml_tensor *& x, ggml_tensor *& work) {
        selected_ = true;
        if (spec_.rows == Rows::OfTerms) {
            x = rows(x);
            work = rows(work);
        } else {
            x = rows(ggml_add(c_, x, work));
            work = nullptr;
        }
    }

    ggml_tensor * layer(int il, ggml_tensor * x, bool selects) {
        const LayerSpec & layer = spec_.layers[static_cast<size_t>(il)];
        const LayerWeights & w = model_.layers_[static_cast<size_t>(il)];
        ggml_tensor * h = name(ggml_mul(c_, norm(x), w.norm), "attn_norm");
        inside_.push_back(h);
        ggml_tensor * work = layer.work == Work::FeedForward ? feed_forward(layer, w, h)
                             : layer.work == Work::State     ? state(w, h)
                                                             : attention(il, h);
        if (layer.work == Work::Parallel) {
            work = ggml_add(c_, work, feed_forward(layer, w, h));
        }
        if (selects) {
            select(x, work);
        }
        if (layer.work == Work::Sequential || work == nullptr) {
            x = work == nullptr ? x : name(ggml_add(c_, x, work), "ffn_inp");
            work = feed_forward(layer, w, name(ggml_mul(c_, norm(x), w.ffn_norm), "ffn_norm"));
        }
        return sum(layer, x, finish_work(il, work));
    }

    // Another valid order of the nodes: sources first, and accesses to memory that is written in place stay in order.
    void shuffle() {
        const int n = ggml_graph_n_nodes(graph_.nodes);
        ggml_tensor ** nodes = ggml_graph_nodes(graph_.nodes);
        std::unordered_map<const ggml_tensor *, int> index;
        for (int i = 0; i < n; ++i) {
            index.emplace(nodes[i], i);
        }
        std::vector<std::vector<int>> after(static_cast<size_t>(n));
        std::vector<int> waits(static_cast<size_t>(n), 0);
        const auto order = [&](int first, int second) {
            CHECK(first < second);
            after[static_cast<size_t>(first)].push_back(second);
            ++waits[static_cast<size_t>(second)];
        };
        struct Accesses {
            int last_write = -1;
            std::vector<int> reads;
        };
        std::unordered_map<const ggml_tensor *, Accesses> memory;
        std::vector<int> cache_writes;  // that no layer's output came after yet
        for (int i = 0; i < n; ++i) {
            const ggml_tensor * t = nodes[i];
            for (const ggml_tensor * source : t->src) {
                if (source == nullptr || source == t) {  // a cast is its own second source
                    continue;
                }
                if (const auto found = index.find(source); found != index.end()) {
                    order(found->second, i);
                }
                Accesses & a = memory[root(source)];
                if (a.last_write >= 0 && a.last_write != i) {
                    order(a.last_write, i);
                }
                a.reads.push_back(i);
            }
            if (t->view_src != nullptr && writes(t)) {
                Accesses & a = memory[root(t)];
                for (const int read : a.reads) {
                    if (read != i) {
                        order(read, i);
                    }
                }
                a = Accesses{i, {}};
                cache_writes.push_back(i);
            }
            if (std::find(graph_.outputs.begin(), graph_.outputs.end(), t) != graph_.outputs.end() && !spec_.late_writes) {
                for (const int write : cache_writes) {
                    if (write != i) {
                        order(write, i);
                    }
                }
                cache_writes.clear();
            }
        }
        std::vector<ggml_tensor *> shuffled;
        std::vector<int> ready;
        for (int i = 0; i < n; ++i) {
            if (waits[static_cast<size_t>(i)] == 0) {
                ready.push_back(i);
            }
        }
        std::mt19937 random(static_cast<uint32_t>(spec_.seed));
        while (!ready.empty()) {
            std::swap(ready[random() % ready.size()], ready.back());
            const int i = ready.back();
            ready.pop_back();
            shuffled.push_back(nodes[i]);
            for (const int next : after[static_cast<size_t>(i)]) {
                if (--waits[static_cast<size_t>(next)] == 0) {
                    ready.push_back(next);
                }
            }
        }
        CHECK_EQUAL(shuffled.size(), static_cast<size_t>(n));
        std::copy(shuffled.begin(), shuffled.end(), nodes);
    }

    static const ggml_tensor * root(const ggml_tensor * t) { return t->view_src != nullptr ? t->view_src : t; }

    static bool writes(const ggml_tensor * t) {
        return t->op != GGML_OP_VIEW && t->op != GGML_OP_RESHAPE && t->op != GGML_OP_PERMUTE && t->op != GGML_OP_TRANSPOSE;
    }

    const Model & model_;
    const ModelSpec & spec_;
    ggml_context * c_;
    const Batch & batch_;
    int64_t d_;
    int64_t n_tokens_;
    int64_t n_used_ = 0;
    Graph graph_;
    ggml_tensor * token_embedding_ = nullptr;
    ggml_tensor * mask_ = nullptr;
    ggml_tensor * factors_ = nullptr;
    ggml_tensor * own_rows_ = nullptr;
    std::vector<ggml_tensor *> inside_;  // per layer, what another may read
    bool selected_ = false;
    uint64_t n_named_ = 0;
};

Graph Model::build(ggml_context * context, const Batch & batch, const LayerActions & actions) const {
    return Builder(*this, context, batch).build(actions);
}

void Model::set_inputs(const Graph & graph, const Batch & batch) const {
    // Inputs that no node reads have no memory.
    const auto set = [](ggml_tensor * t, const void * values) {
        if (t->buffer != nullptr && !ggml_is_empty(t)) {
            ggml_backend_tensor_set(t, values, 0, ggml_nbytes(t));
        }
    };
    const auto d = static_cast<size_t>(spec_.n_embd);
    const auto n_tokens = static_cast<size_t>(batch.n_tokens);
    const auto n_used = static_cast<size_t>(batch.begin) + n_tokens;
    std::vector<int32_t> tokens(n_tokens);
    std::vector<int32_t> positions(n_tokens);
    std::vector<int64_t> cells(n_tokens);
    std::vector<int64_t> transposed(n_tokens * d);
    std::vector<float> embeddings(n_tokens * d);
    std::vector<float> mask(n_used * n_tokens);
    for (size_t i = 0; i < n_tokens; ++i) {
        const size_t position = static_cast<size_t>(batch.begin) + i;
        tokens[i] = static_cast<int32_t>((spec_.seed + 5 * position) % n_vocab);
        positions[i] = static_cast<int32_t>(position);
        cells[i] = static_cast<int64_t>(position);
        for (size_t j = 0; j < d; ++j) {
            transposed[i * d + j] = static_cast<int64_t>(j * static_cast<size_t>(spec_.n_cells) + position);
            embeddings[i * d + j] = static_cast<float>((i + 3 * j) % 7) / 7.0F;
        }
        for (size_t j = 0; j < n_used; ++j) {
            mask[i * n_used + j] = j <= position ? 0.0F : -INFINITY;
        }
    }
    set(graph.tokens, tokens.data());
    set(graph.positions, positions.data());
    set(graph.cells, cells.data());
    set(graph.cells_transposed, transposed.data());
    set(graph.embeddings, embeddings.data());
    set(graph.mask, mask.data());
    set(graph.out_ids, batch.out_ids.data());
}

}  // namespace first_cpp::testing
