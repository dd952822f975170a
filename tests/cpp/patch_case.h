// One random case for the graph patch: a model, and evaluations of it with layers skipped.
#pragma once

#include "choices.h"
#include "random_model.h"

namespace first_cpp::testing {

struct CaseResult {
    int n_separable = 0;  // layers that could be skipped, where the graph is in llama.cpp's order and names its outputs
    int n_accepted = 0;   // of those, what the probe accepts
    int n_evaluations = 0;
    int n_refused = 0;  // evaluations that the patch refused although the probe accepted the layers
    int n_skipped = 0;
};

// Throws when an evaluation is not bit for bit that of the model without the layers, a cache of a skipped layer was
// touched, or a graph is not as it was.
CaseResult run_patch_case(Choices & choices);
CaseResult run_patch_case(Choices & choices, const ModelSpec & spec);

}  // namespace first_cpp::testing
