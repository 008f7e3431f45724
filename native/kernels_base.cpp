#define LDM_ISA base
#include "kernels.inc"
