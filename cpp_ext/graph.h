// Questions about single nodes of a ggml graph: what they are, where their data lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

namespace first_cpp {

// The number between `prefix` and `end` in `name`; -1 when there is none.
int number_after(const char * prefix, const char * name, char end);

// A node that only renames memory (reshape, view, permute, transpose): backends compute nothing for it.
bool is_alias(const ggml_tensor * t);

inline bool is_computed(const ggml_tensor * t) { return (t->flags & GGML_TENSOR_FLAG_COMPUTE) != 0; }

// The tensor that owns the memory of t: itself, or what it is a view of.
inline const ggml_tensor * owner(const ggml_tensor * t) { return t->view_src != nullptr ? t->view_src : t; }

// A node that writes into memory that outlives the graph: the KV cache or a recurrent state.
bool writes_cache(const ggml_tensor * t);

// Whether the bytes of a and b meet.
bool overlap(const ggml_tensor * a, const ggml_tensor * b);

inline bool same_shape(const ggml_tensor * a, const ggml_tensor * b) { return ggml_are_same_shape(a, b); }

}  // namespace first_cpp
