// Compiled with -mavx512f/bw/vl/dq; run only where the processor has them.
#define KSDA_ISA avx512
#define KSDA_NAME "avx512"
#define KSDA_ENTRY avx512_kernels
#define KSDA_BYTES 64
#include "kernels_impl.h"
