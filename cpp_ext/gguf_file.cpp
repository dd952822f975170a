// GGUF metadata through ggml's own reader and writer.
#include "gguf_file.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "ggml.h"

namespace first_cpp {

namespace {

// What ggml's reader asks for a few bytes at a time, read in large blocks: a vocabulary is 100,000s of short strings.
class BufferedFile {
public:
    explicit BufferedFile(const std::string & path)
        : file_(std::filesystem::u8path(path), std::ios::binary | std::ios::ate), bytes_(size_t{1} << 18) {
        const auto end = file_.tellg();
        size_ = end > 0 ? static_cast<uint64_t>(end) : 0;
    }

    uint64_t size() const { return size_; }

    size_t read(void * out, uint64_t offset, size_t n) {
        if (offset >= begin_ && offset - begin_ <= filled_ && filled_ - (offset - begin_) >= n) {
            std::memcpy(out, bytes_.data() + (offset - begin_), n);
            return n;
        }
        if (n > bytes_.size()) {
            return read_file(static_cast<char *>(out), offset, n);
        }
        begin_ = offset;
        filled_ = read_file(bytes_.data(), offset, bytes_.size());
        const size_t there = std::min(n, filled_);
        std::memcpy(out, bytes_.data(), there);
        return there;
    }

private:
    size_t read_file(char * out, uint64_t offset, size_t n) {
        file_.clear();
        file_.seekg(static_cast<std::streamoff>(offset));
        file_.read(out, static_cast<std::streamsize>(n));
        return static_cast<size_t>(file_.gcount());
    }

    std::ifstream file_;
    std::vector<char> bytes_;
    uint64_t size_ = 0;
    uint64_t begin_ = 0;
    size_t filled_ = 0;
};

size_t read_buffered(void * file, void * out, uint64_t offset, size_t n) {
    return static_cast<BufferedFile *>(file)->read(out, offset, n);
}

gguf_context * open(const std::string & path) {
    gguf_context * gguf = nullptr;
    try {
        BufferedFile file(path);
        const gguf_init_params params{/*no_alloc=*/true, /*ctx=*/nullptr};
        gguf = gguf_init_from_callback(&read_buffered, &file, 0, file.size(), params);
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

std::string GgufFile::kind(const std::string & key) const {
    const int64_t id = gguf_find_key(gguf_.get(), key.c_str());
    if (id < 0) {
        return "";
    }
    if (type(id) != GGUF_TYPE_ARRAY) {
        return gguf_type_name(type(id));
    }
    const char * element = gguf_type_name(element_type(id));
    return std::string("arr[") + (element == nullptr ? "?" : element) + "]";
}

size_t GgufFile::count(const std::string & key) const {
    const int64_t id = find(key);
    return type(id) == GGUF_TYPE_ARRAY ? gguf_get_arr_n(gguf_.get(), id) : size_t{1};
}

int64_t GgufFile::find(const std::string & key) const {
    const int64_t id = gguf_find_key(gguf_.get(), key.c_str());
    if (id < 0) {
        throw MissingName(key);
    }
    return id;
}

gguf_type GgufFile::element_type(int64_t id) const {
    if (type(id) != GGUF_TYPE_ARRAY) {
        throw std::invalid_argument("not an array");
    }
    return gguf_get_arr_type(gguf_.get(), id);
}

void GgufFile::set_str(const std::string & key, const std::string & value) {
    gguf_set_val_str(gguf_.get(), key.c_str(), value.c_str());
}

void GgufFile::set_f32_array(const std::string & key, const float * values, size_t n) {
    gguf_set_arr_data(gguf_.get(), key.c_str(), GGUF_TYPE_FLOAT32, values, n);
}

void GgufFile::set_u32_array(const std::string & key, const std::vector<uint32_t> & values) {
    gguf_set_arr_data(gguf_.get(), key.c_str(), GGUF_TYPE_UINT32, values.data(), values.size());
}

void GgufFile::set_bool_array(const std::string & key, const std::vector<bool> & values) {
    const std::vector<int8_t> bytes(values.begin(), values.end());
    gguf_set_arr_data(gguf_.get(), key.c_str(), GGUF_TYPE_BOOL, bytes.data(), bytes.size());
}

void GgufFile::set_tensor_f32(const std::string & name) {
    if (gguf_find_tensor(gguf_.get(), name.c_str()) < 0) {
        throw MissingName(name);
    }
    gguf_set_tensor_type(gguf_.get(), name.c_str(), GGML_TYPE_F32);
}

void GgufFile::add_tensor_f16(const std::string & name, int64_t n_in, int64_t n_out) {
    if (name.size() >= GGML_MAX_NAME || n_in < 1 || n_out < 1 || gguf_find_tensor(gguf_.get(), name.c_str()) >= 0) {
        throw std::invalid_argument("a tensor needs a new name below 64 bytes and sizes above 0");
    }
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
        ggml_init(ggml_init_params{ggml_tensor_overhead(), nullptr, /*no_alloc=*/true}), &ggml_free);
    ggml_tensor * t = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, n_in, n_out);
    ggml_set_name(t, name.c_str());
    gguf_add_tensor(gguf_.get(), t);
}

std::vector<char> GgufFile::metadata() const {
    std::vector<char> bytes(gguf_get_meta_size(gguf_.get()));
    gguf_get_meta_data(gguf_.get(), bytes.data());
    return bytes;
}

}  // namespace first_cpp
