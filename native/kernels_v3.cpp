#define LDM_SIZES
#define LDM_ISA v3
#include "kernels.inc"
