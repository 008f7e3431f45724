#define LDM_SIZES
#define LDM_ISA v4
#include "kernels.inc"
