// The filter, its adjoint and the recursions of the smoother as Python calls them, with tensors.
#pragma once

#include "tensors.hpp"

namespace ldm {

// Filters `arguments`, a ldm_filter.core.kernels.Arguments. Returns (mean, cov, log-likelihood, predicted mean, predicted cov, plan, distinct steps,
// failed step or -1, failed series), of which the predictions are None unless wanted; the plan, (K', L^-1, constants), where it is to be kept and
// covariances are shared. None where a tensor does not fit its place, is not laid out as the kernels need it or, where everything is to be
// checked, a number of the model or of the log-likelihood is not finite, a variance negative, a factor failed, or a mask shows everything.
nb::object filter(nb::handle arguments, bool predicted, bool keep, bool check, int threads);

// One step of every sequence from a belief: `arguments` without a time, the mask None, c too where there is none, and the number of observed channels,
// None or a tensor () or (1 | B,) of int64 or float64. Returns (mean, cov, log-likelihood, predicted mean, predicted cov, failed series or -1); None where
// a tensor does not fit its place or is not laid out as the kernels need it.
nb::object step(nb::handle arguments, nb::handle seen, int threads);

// The gradients of the nine tensors, in their shapes and dtypes, None where they are not needed; `open`: everything was checked. Of a single step the
// filtered moments are not needed.
nb::list adjoin(nb::handle arguments, nb::handle mean, nb::handle cov, nb::handle plan, Index distinct, bool open, nb::handle arriving, nb::handle needed, int threads);

// A recursion through links.hpp: G (1 | B, T - 1, n, n), u and the result (B, T, n) or (B, T, n, n), contiguous, in double.
nb::object links(nb::handle G, nb::handle u, bool back, int threads);

// Whether all numbers of these tensors are finite and no variance of `covs` is negative; false also where one is no float tensor on the CPU.
bool sound(nb::sequence covs, nb::sequence others);

}  // namespace ldm
