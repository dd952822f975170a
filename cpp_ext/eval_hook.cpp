// What llama.cpp calls for every graph node of one context.
#include "eval_hook.h"

#include <exception>
#include <utility>

namespace first_cpp {

bool EvalHook::callback(ggml_tensor * t, bool ask, void * user_data) noexcept {
    auto * hook = static_cast<EvalHook *>(user_data);
    try {
        if (ask) {
            return hook->on_node(t);
        }
        hook->on_computed(t);
    } catch (const std::exception & e) {
        hook->fail(e.what());
    } catch (...) {
        hook->fail("unknown error");
    }
    return !ask;  // computed: always go on, false would leave stale logits and report success
}

bool EvalHook::aborted(void * data) noexcept {
    return static_cast<const EvalHook *>(data)->abort_.load(std::memory_order_relaxed);
}

bool EvalHook::on_node(ggml_tensor * t) {
    if (patch.active()) {
        patch.on_node(t);
    }
    if (probe.active()) {
        probe.on_node(t);
    }
    return feed.active() && feed.on_node(t);
}

void EvalHook::on_computed(const ggml_tensor * t) {
    if (feed.active()) {
        feed.on_computed(t);
    }
}

void EvalHook::start_skipping() {
    take_error();
    patch.start();
}

void EvalHook::start_reading(HiddenStateReader & reader, std::vector<std::string> names) {
    take_error();
    feed.start(reader, std::move(names));
}

void EvalHook::stop() noexcept {
    patch.stop();
    feed.stop();
}

void EvalHook::fail(const char * what) noexcept {
    stop();
    try {
        if (error_.empty()) {
            error_ = what;
        }
    } catch (...) {
        error_.clear();  // out of memory even for the message
    }
}

std::string EvalHook::take_error() {
    if (patch.active()) {
        patch.check_complete();
    }
    std::string error = error_.empty() ? patch.error() : error_;
    error_.clear();
    patch.clear_error();
    return error;
}

}  // namespace first_cpp
