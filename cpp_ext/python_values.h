// C++ values as Python objects, and back.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gguf_file.h"

namespace first_cpp {

using FloatArray = nanobind::ndarray<const float, nanobind::c_contig, nanobind::device::cpu>;
using FloatMatrix = nanobind::ndarray<const float, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

inline std::vector<float> to_vector(const FloatArray & a) { return std::vector<float>(a.data(), a.data() + a.size()); }

inline nanobind::bytes to_bytes(const std::vector<char> & bytes) { return nanobind::bytes(bytes.data(), bytes.size()); }

// A NumPy array that owns the values.
template <typename T>
nanobind::object to_numpy(std::vector<T> values, const std::vector<size_t> & shape) {
    auto owned = std::make_unique<std::vector<T>>(std::move(values));
    T * data = owned->data();
    nanobind::capsule owner(owned.get(), [](void * p) noexcept { delete static_cast<std::vector<T> *>(p); });
    static_cast<void>(owned.release());  // the capsule's from here on
    return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(data, shape.size(), shape.data(), owner));
}

// The value of a key: int, float, bool, bytes for a string, a NumPy array, or a list of bytes. Throws MissingName.
nanobind::object get_value(const GgufFile & file, const std::string & key);

}  // namespace first_cpp
