// For any processor: 16-byte vectors (SSE2, NEON), which every 64-bit machine has.
#define KSDA_ISA plain
#define KSDA_NAME "plain"
#define KSDA_ENTRY plain_kernels
#define KSDA_BYTES 16
#include "kernels_impl.h"
