// The kernels of the instruction set that is in use.
#pragma once

#include <string>
#include <vector>

#include "problem.hpp"

namespace ldm {

template <class Scalar>
const Kernels<Scalar>& kernels();
const LinkKernel& link_kernel();

// The names of those that this processor and build have, the best one last; throws std::invalid_argument for another.
std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

}  // namespace ldm
