// GGUF metadata through ggml's own reader and writer, with every getter checked before it could abort.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gguf.h"

namespace first_cpp {

// The file has no such key, or no such tensor; what() is its name.
struct MissingName : std::out_of_range {
    using std::out_of_range::out_of_range;
};

struct GgufTensor {
    std::string name;
    std::string type;
    std::vector<int64_t> shape;  // ne, fastest first, without trailing ones
    uint64_t offset;             // from the start of the file
    uint64_t n_bytes;
};

class GgufFile {
public:
    GgufFile();                                   // empty, to be written
    explicit GgufFile(const std::string & path);  // throws std::invalid_argument when ggml cannot read it

    std::vector<std::string> keys() const;
    std::vector<GgufTensor> tensors() const;
    uint32_t version() const { return gguf_get_version(gguf_.get()); }
    size_t alignment() const { return gguf_get_alignment(gguf_.get()); }
    size_t data_offset() const { return gguf_get_data_offset(gguf_.get()); }

    // "u32", "str", ... and "arr[f32]" for arrays; empty when there is no such key.
    std::string kind(const std::string & key) const;

    // Values that a key has: 1, or an array's length. Throws MissingName.
    size_t count(const std::string & key) const;

    // Id of a key; throws MissingName when there is none. type() and element_type() take such ids.
    int64_t find(const std::string & key) const;
    gguf_type type(int64_t id) const { return gguf_get_kv_type(gguf_.get(), id); }
    gguf_type element_type(int64_t id) const;  // of an array; throws std::invalid_argument on a scalar

    // For ggml's getters, which end the process on a value of another type, and its setters.
    const gguf_context * get() const { return gguf_.get(); }
    gguf_context * get() { return gguf_.get(); }

    // Each replaces what the key had.
    void set_u32(const std::string & key, uint32_t value) { gguf_set_val_u32(gguf_.get(), key.c_str(), value); }
    void set_f32(const std::string & key, float value) { gguf_set_val_f32(gguf_.get(), key.c_str(), value); }
    void set_str(const std::string & key, const std::string & value);
    void set_f32_array(const std::string & key, const float * values, size_t n);
    void set_u32_array(const std::string & key, const std::vector<uint32_t> & values);
    void set_bool_array(const std::string & key, const std::vector<bool> & values);
    bool remove(const std::string & key) { return gguf_remove_key(gguf_.get(), key.c_str()) >= 0; }  // false: not there

    // Tensors as the metadata declares them; their data is the caller's to write, after the metadata.
    void set_tensor_f32(const std::string & name);  // throws MissingName
    // A matrix. Throws std::invalid_argument for a name that is taken or too long, and for sizes below 1.
    void add_tensor_f16(const std::string & name, int64_t n_in, int64_t n_out);

    // The file's bytes up to the tensor data.
    std::vector<char> metadata() const;

private:
    struct Free {
        void operator()(gguf_context * g) const { gguf_free(g); }
    };
    std::unique_ptr<gguf_context, Free> gguf_;
};

}  // namespace first_cpp
