// One random case for the probes' values.
#pragma once

#include "choices.h"

namespace first_cpp::testing {

// Throws when values depend on how positions were split into batches, are not what double precision gives, are NaN or (scores)
// outside 0..1, or are not forgotten from a position on.
void run_scores_case(Choices & choices);

}  // namespace first_cpp::testing
