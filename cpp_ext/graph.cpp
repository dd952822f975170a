// Questions about single nodes of a ggml graph: what they are, where their data lies.
#include "graph.h"

#include <cstring>

namespace first_cpp {

int number_after(const char * prefix, const char * name, char end) {
    const size_t length = std::strlen(prefix);
    if (std::strncmp(name, prefix, length) != 0) {
        return -1;
    }
    const char * digit = name + length;
    if (*digit == end) {
        return -1;
    }
    int number = 0;
    for (; *digit != end; ++digit) {
        if (*digit < '0' || *digit > '9' || number > 1'000'000) {
            return -1;
        }
        number = number * 10 + (*digit - '0');
    }
    return number;
}

bool is_alias(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        default:
            return false;
    }
}

bool writes_cache(const ggml_tensor * t) {
    return (t->op == GGML_OP_SET_ROWS || t->op == GGML_OP_CPY) && t->view_src != nullptr && t->view_src->op == GGML_OP_NONE;
}

bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const auto a0 = reinterpret_cast<uintptr_t>(a->data);
    const auto b0 = reinterpret_cast<uintptr_t>(b->data);
    const size_t a_size = ggml_is_empty(a) ? 0 : ggml_nbytes(a);
    const size_t b_size = ggml_is_empty(b) ? 0 : ggml_nbytes(b);
    return a_size != 0 && b_size != 0 && a0 < b0 + b_size && b0 < a0 + a_size;
}

}  // namespace first_cpp
