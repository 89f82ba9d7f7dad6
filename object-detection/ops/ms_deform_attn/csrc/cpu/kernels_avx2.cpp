// Compiled with -mavx2 -mfma -mf16c; run only where the processor has them.
#define KSDA_ISA avx2
#define KSDA_NAME "avx2"
#define KSDA_ENTRY avx2_kernels
#define KSDA_BYTES 32
#include "kernels_impl.h"
