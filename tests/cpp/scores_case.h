// One random case for the router scores.
#pragma once

#include "choices.h"

namespace first_cpp::testing {

// Throws when scores depend on how positions were split into batches, are outside 0..1, are not what double precision gives,
// or are not forgotten from a position on.
void run_scores_case(Choices & choices);

}  // namespace first_cpp::testing
