// One case for the GGUF reader.
#include "gguf_case.h"

#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>

#include "check.h"
#include "ggml.h"
#include "gguf_file.h"

namespace first_cpp::testing {

namespace {

size_t element_size(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            return 8;
        default:
            return 0;
    }
}

// Touches every byte, so that a sanitizer sees each.
void read_bytes(const void * data, size_t n) {
    const std::string copy(static_cast<const char *>(data), n);
    CHECK_EQUAL(copy.size(), n);
}

void read_array(const GgufFile & file, int64_t id) {
    const size_t n = gguf_get_arr_n(file.get(), id);
    if (file.element_type(id) == GGUF_TYPE_STRING) {
        for (size_t i = 0; i < n; ++i) {
            const char * s = gguf_get_arr_str(file.get(), id, i);
            read_bytes(s, std::strlen(s));
        }
        return;
    }
    const size_t size = element_size(file.element_type(id));
    CHECK(size > 0);
    if (n > 0) {
        read_bytes(gguf_get_arr_data(file.get(), id), n * size);
    }
}

void read_value(const GgufFile & file, int64_t id) {
    if (file.type(id) == GGUF_TYPE_ARRAY) {
        read_array(file, id);
    } else if (file.type(id) == GGUF_TYPE_STRING) {
        const char * s = gguf_get_val_str(file.get(), id);
        read_bytes(s, std::strlen(s));
    } else {
        CHECK(element_size(file.type(id)) > 0);
        read_bytes(gguf_get_val_data(file.get(), id), element_size(file.type(id)));
    }
}

}  // namespace

bool run_gguf_case(const std::string & path) {
    std::unique_ptr<GgufFile> file;
    try {
        file = std::make_unique<GgufFile>(path);
    } catch (const std::invalid_argument &) {
        return false;
    }
    for (const std::string & key : file->keys()) {
        const int64_t id = file->find(key);
        CHECK(id >= 0);
        CHECK(!file->kind(key).empty());
        read_value(*file, id);
    }
    CHECK_EQUAL(file->kind("no such key"), "");
    for (const GgufTensor & tensor : file->tensors()) {
        CHECK(!tensor.shape.empty() && !tensor.type.empty());
        CHECK(tensor.offset >= file->data_offset());
    }
    CHECK(file->alignment() > 0);
    if (file->alignment() <= 4096) {  // else gigabytes of padding
        CHECK(!file->metadata().empty());
    }
    return true;
}

}  // namespace first_cpp::testing
