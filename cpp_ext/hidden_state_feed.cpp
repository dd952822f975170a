// Hands over hidden states while llama.cpp computes.
#include "hidden_state_feed.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "ggml-backend.h"

namespace first_cpp {

void HiddenStateFeed::start(HiddenStateReader & reader, std::vector<std::string> names) {
    reader_ = names.empty() ? nullptr : &reader;
    names_ = std::move(names);
    next_ = 0;
}

bool HiddenStateFeed::on_node(const ggml_tensor * t) const {
    return std::strncmp(t->name, names_[next_].c_str(), GGML_MAX_NAME) == 0;
}

void HiddenStateFeed::on_computed(const ggml_tensor * t) {
    if (!on_node(t)) {
        return;
    }
    if (t->type != GGML_TYPE_F32 || !ggml_is_contiguous(t)) {
        throw std::runtime_error("hidden state " + names_[next_] + " is not contiguous float32");
    }
    const int point = static_cast<int>(next_);
    next_ = (next_ + 1) % names_.size();
    const int64_t n_rows = ggml_nrows(t);
    if (t->buffer == nullptr || ggml_backend_buffer_is_host(t->buffer)) {
        reader_->read(point, static_cast<const float *>(t->data), n_rows, t->ne[0]);
        return;
    }
    copy_.resize(static_cast<size_t>(ggml_nelements(t)));
    ggml_backend_tensor_get(t, copy_.data(), 0, ggml_nbytes(t));
    reader_->read(point, copy_.data(), n_rows, t->ne[0]);
}

}  // namespace first_cpp
