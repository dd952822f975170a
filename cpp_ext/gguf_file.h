// GGUF metadata through ggml's own reader and writer, with every getter checked before it could abort.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gguf.h"

namespace first_cpp {

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

    // Id of a key, -1 when there is none. The methods below take ids of existing keys.
    int64_t find(const std::string & key) const { return gguf_find_key(gguf_.get(), key.c_str()); }
    gguf_type type(int64_t id) const { return gguf_get_kv_type(gguf_.get(), id); }
    gguf_type element_type(int64_t id) const;  // of an array; throws std::invalid_argument on a scalar

    const gguf_context * get() const { return gguf_.get(); }
    gguf_context * get() { return gguf_.get(); }

    // The file's bytes up to the tensor data.
    std::vector<char> metadata() const;

private:
    struct Free {
        void operator()(gguf_context * g) const { gguf_free(g); }
    };
    std::unique_ptr<gguf_context, Free> gguf_;
};

}  // namespace first_cpp
