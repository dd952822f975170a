// GGUF metadata through ggml's own reader and writer.
#include "gguf_file.h"

#include <exception>
#include <stdexcept>

#include "ggml.h"

namespace first_cpp {

namespace {

gguf_context * open(const std::string & path) {
    gguf_context * gguf = nullptr;
    try {
        gguf = gguf_init_from_file(path.c_str(), gguf_init_params{/*no_alloc=*/true, /*ctx=*/nullptr});
    } catch (const std::exception &) {
        gguf = nullptr;  // out of memory over a length that a broken file declares
    }
    if (gguf == nullptr) {
        throw std::invalid_argument("ggml cannot read its metadata: it is truncated or malformed");
    }
    return gguf;
}

}  // namespace

GgufFile::GgufFile() : gguf_(gguf_init_empty()) {}

GgufFile::GgufFile(const std::string & path) : gguf_(open(path)) {}

std::vector<std::string> GgufFile::keys() const {
    std::vector<std::string> keys;
    const int64_t n = gguf_get_n_kv(gguf_.get());
    for (int64_t id = 0; id < n; ++id) {
        keys.emplace_back(gguf_get_key(gguf_.get(), id));
    }
    return keys;
}

std::vector<GgufTensor> GgufFile::tensors() const {
    std::vector<GgufTensor> tensors;
    const int64_t n = gguf_get_n_tensors(gguf_.get());
    for (int64_t id = 0; id < n; ++id) {
        const int64_t * ne = gguf_get_tensor_ne(gguf_.get(), id);
        std::vector<int64_t> shape(ne, ne + GGML_MAX_DIMS);
        while (shape.size() > 1 && shape.back() == 1) {
            shape.pop_back();
        }
        tensors.push_back(GgufTensor{
            gguf_get_tensor_name(gguf_.get(), id), ggml_type_name(gguf_get_tensor_type(gguf_.get(), id)), std::move(shape),
            data_offset() + gguf_get_tensor_offset(gguf_.get(), id), gguf_get_tensor_size(gguf_.get(), id)});
    }
    return tensors;
}

gguf_type GgufFile::element_type(int64_t id) const {
    if (type(id) != GGUF_TYPE_ARRAY) {
        throw std::invalid_argument("not an array");
    }
    return gguf_get_arr_type(gguf_.get(), id);
}

std::vector<char> GgufFile::metadata() const {
    std::vector<char> bytes(gguf_get_meta_size(gguf_.get()));
    gguf_get_meta_data(gguf_.get(), bytes.data());
    return bytes;
}

}  // namespace first_cpp
