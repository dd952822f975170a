// C++ values as Python objects, and back.
#include "python_values.h"

#include <cstring>

namespace nb = nanobind;

namespace first_cpp {

namespace {

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

}  // namespace

nb::object get_value(const GgufFile & file, const std::string & key) {
    const int64_t id = file.find(key);
    return file.type(id) == GGUF_TYPE_ARRAY ? get_array(file, id) : get_scalar(file, id);
}

}  // namespace first_cpp
