#include "dispatch.hpp"

#include <stdexcept>

namespace ldm {
namespace {

struct Choice {
    std::string name;
    const Kernels<float>* singles;
    const Kernels<double>* doubles;
    const LinkKernel* links;
};

std::vector<Choice> choices() {
    std::vector<Choice> found{{"base", &base::kFloat, &base::kDouble, &base::kLinks}};
#if defined(LDM_X86_LEVELS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"v3", &v3::kFloat, &v3::kDouble, &v3::kLinks});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        found.push_back({"v4", &v4::kFloat, &v4::kDouble, &v4::kLinks});
    }
#endif
    return found;
}

Choice chosen = choices().back();

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
    return *chosen.singles;
}

template <>
const Kernels<double>& kernels<double>() {
    return *chosen.doubles;
}

const LinkKernel& link_kernel() { return *chosen.links; }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Choice& one : choices()) names.push_back(one.name);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (const Choice& one : choices()) {
        if (one.name == name) {
            chosen = one;
            return;
        }
    }
    throw std::invalid_argument("this processor or build has no kernels called " + name);
}

}  // namespace ldm
