// A CUDA runtime and driver that do nothing, for machines without a GPU: with
// it in LD_PRELOAD and LD_LIBRARY_PATH, a CUDA build of PyTorch goes all its
// ways, allocator, autograd threads, Triton's compiler and launcher included,
// and what it would launch can be looked at and what it costs the CPU timed.
//
// Memory of the "GPU" is the CPU's, of zeros that nobody writes. Two devices.

#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define RUNTIME EXPORT cudaError_t
#define DRIVER EXPORT CUresult

// What was launched through the driver, and cleared, in order. How many
// parameters a function has is said by the test.

enum { kRecords = 256, kFunctions = 1024, kParameters = 32 };

typedef struct {
  unsigned long long function, stream;  // function 0: a memset
  unsigned grid[3], block[3], shared, count;
  unsigned long long parameters[kParameters];
} Record;

static Record records[kRecords];
static int recorded = -1;  // -1: nobody asks
static struct { CUfunction function; unsigned count; } known[kFunctions];
static int known_count;
static long kernels;  // launched by the runtime, PyTorch's own, or the driver

EXPORT void fake_know(unsigned long long function, unsigned count) {
  known[known_count].function = (CUfunction)function;
  known[known_count++].count = count;
}
EXPORT void fake_record(int on) { recorded = on ? 0 : -1; }
EXPORT int fake_recorded(void) { return recorded; }
EXPORT Record* fake_get(int i) { return &records[i]; }
EXPORT long fake_kernels(void) { return kernels; }

static void record(CUfunction function, const unsigned* grid,
                   const unsigned* block, unsigned shared, CUstream stream,
                   void** parameters) {
  ++kernels;
  if (recorded < 0 || recorded >= kRecords) return;
  Record* r = &records[recorded++];
  memset(r, 0, sizeof *r);
  r->function = (unsigned long long)function;
  r->stream = (unsigned long long)stream;
  memcpy(r->grid, grid, sizeof r->grid);
  memcpy(r->block, block, sizeof r->block);
  r->shared = shared;
  for (int i = 0; i < known_count; ++i) {
    if (known[i].function == function) r->count = known[i].count;
  }
  for (unsigned i = 0; i < r->count; ++i) {
    memcpy(&r->parameters[i], parameters[i], 8);
  }
}

// The runtime

static _Thread_local int device = 0;

static int attribute(int which) {
  switch (which) {  // of an H100, as far as anybody asks
    case 1: case 2: case 3: return 1024;  // threads of a block
    case 4: return 64;
    case 5: return 2147483647;  // blocks
    case 6: case 7: return 65535;
    case 8: return 49152;  // shared memory
    case 10: return 32;  // warp
    case 12: return 65536;  // registers
    case 13: return 1980000;
    case 16: return 132;  // multiprocessors
    case 36: return 2619000;
    case 37: return 5120;
    case 38: return 52428800;  // L2
    case 39: return 2048;
    case 75: return 9;
    case 76: return 0;
    case 81: return 233472;
    case 82: return 65536;
    case 97: return 232448;
    default: return 1;
  }
}

RUNTIME cudaGetDeviceCount(int* n) { *n = 2; return 0; }
RUNTIME cudaGetDevice(int* d) { *d = device; return 0; }
static void enter(int d);
RUNTIME cudaSetDevice(int d) {
  device = d;
  enter(d);
  return 0;
}
RUNTIME cudaDriverGetVersion(int* v) { *v = 13000; return 0; }
RUNTIME cudaRuntimeGetVersion(int* v) { *v = 13000; return 0; }
RUNTIME cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr a, int d) {
  *v = attribute(a);
  return 0;
}
RUNTIME cudaGetDeviceProperties(struct cudaDeviceProp* p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Fake H100");
  p->totalGlobalMem = 80L << 30;
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->l2CacheSize = 52428800;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlockOptin = 232448;
  p->unifiedAddressing = p->managedMemory = p->cooperativeLaunch = 1;
  p->maxBlocksPerMultiProcessor = 32;
  p->textureAlignment = 512;
  return 0;
}
RUNTIME cudaMalloc(void** p, size_t n) {
  *p = mmap(0, n, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *p == MAP_FAILED ? cudaErrorMemoryAllocation : 0;
}
RUNTIME cudaMallocAsync(void** p, size_t n, cudaStream_t s) {
  return cudaMalloc(p, n);
}
RUNTIME cudaFree(void* p) { return 0; }
RUNTIME cudaFreeAsync(void* p, cudaStream_t s) { return 0; }
RUNTIME cudaHostAlloc(void** p, size_t n, unsigned f) {
  *p = aligned_alloc(4096, (n + 4095) & ~4095L);
  return 0;
}
RUNTIME cudaFreeHost(void* p) { return 0; }
RUNTIME cudaHostRegister(void* p, size_t n, unsigned f) { return 0; }
RUNTIME cudaMemGetInfo(size_t* f, size_t* t) {
  *f = *t = 80L << 30;
  return 0;
}
RUNTIME cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int p) {
  *s = malloc(64);
  return 0;
}
RUNTIME cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) {
  *s = malloc(64);
  return 0;
}
RUNTIME cudaStreamDestroy(cudaStream_t s) { return 0; }
RUNTIME cudaDeviceGetStreamPriorityRange(int* a, int* b) {
  *a = 0;
  *b = -5;
  return 0;
}
RUNTIME cudaStreamSynchronize(cudaStream_t s) { return 0; }
RUNTIME cudaStreamQuery(cudaStream_t s) { return 0; }
RUNTIME cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) {
  return 0;
}
RUNTIME cudaStreamIsCapturing(cudaStream_t s,
                              enum cudaStreamCaptureStatus* c) {
  *c = 0;
  return 0;
}
RUNTIME cudaStreamGetCaptureInfo(cudaStream_t s,
                                 enum cudaStreamCaptureStatus* c,
                                 unsigned long long* id, cudaGraph_t* g,
                                 const cudaGraphNode_t** d,
                                 const cudaGraphEdgeData** e, size_t* n) {
  *c = 0;
  if (id) *id = 0;
  return 0;
}
RUNTIME cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* m) {
  return 0;
}
RUNTIME cudaEventCreate(cudaEvent_t* e) { *e = malloc(64); return 0; }
RUNTIME cudaEventCreateWithFlags(cudaEvent_t* e, unsigned f) {
  *e = malloc(64);
  return 0;
}
RUNTIME cudaEventDestroy(cudaEvent_t e) { free(e); return 0; }
RUNTIME cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
RUNTIME cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) {
  return 0;
}
RUNTIME cudaEventQuery(cudaEvent_t e) { return 0; }
RUNTIME cudaEventSynchronize(cudaEvent_t e) { return 0; }
RUNTIME cudaEventElapsedTime(float* t, cudaEvent_t a, cudaEvent_t b) {
  *t = .01f;
  return 0;
}
RUNTIME cudaDeviceSynchronize(void) { return 0; }
RUNTIME cudaGetLastError(void) { return 0; }
RUNTIME cudaPeekAtLastError(void) { return 0; }
RUNTIME cudaFuncSetAttribute(const void* f, enum cudaFuncAttribute a, int v) {
  return 0;
}
RUNTIME cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void* f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = 90;
  return 0;
}
RUNTIME cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* n, const void* f, int b, size_t s, unsigned flags) {
  *n = 8;
  return 0;
}
RUNTIME cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t s,
                         cudaStream_t st) {
  ++kernels;
  return 0;
}
RUNTIME cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f,
                            void** a) {
  ++kernels;
  return 0;
}
RUNTIME __cudaLaunchKernel(void* k, dim3 g, dim3 b, void** a, size_t s,
                           cudaStream_t st) {
  ++kernels;
  return 0;
}
RUNTIME __cudaGetKernel(void** k, const void* f) {
  *k = (void*)f;
  return 0;
}
RUNTIME cudaMemcpy(void* d, const void* s, size_t n, enum cudaMemcpyKind k) {
  memcpy(d, s, n);
  return 0;
}
RUNTIME cudaMemcpyAsync(void* d, const void* s, size_t n,
                        enum cudaMemcpyKind k, cudaStream_t st) {
  if (k != cudaMemcpyDeviceToDevice) memcpy(d, s, n);
  return 0;
}
RUNTIME cudaMemset(void* d, int v, size_t n) { return 0; }
RUNTIME cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t s) {
  return 0;
}
RUNTIME cudaPointerGetAttributes(struct cudaPointerAttributes* a,
                                 const void* p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  a->devicePointer = (void*)p;
  return 0;
}
RUNTIME cudaDeviceCanAccessPeer(int* c, int a, int b) { *c = 0; return 0; }
static CUresult nothing(void) { return 0; }
RUNTIME cudaGetDriverEntryPointByVersion(
    const char* name, void** f, unsigned v, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult* r) {
  *f = dlsym(RTLD_DEFAULT, name);
  if (!*f) *f = nothing;
  if (r) *r = 0;
  return 0;
}

// The driver

#undef cuDeviceGetCount
static _Thread_local CUcontext context;  // none in a thread that is new

static void enter(int d) { context = (CUcontext)(long)(d + 1); }

DRIVER cuInit(unsigned f) { return 0; }
DRIVER cuDriverGetVersion(int* v) { *v = 13000; return 0; }
DRIVER cuDeviceGetCount(int* n) { *n = 2; return 0; }
DRIVER cuDeviceGet(CUdevice* d, int i) { *d = i; return 0; }
DRIVER cuDeviceGetName(char* n, int l, CUdevice d) {
  strncpy(n, "Fake H100", l);
  return 0;
}
DRIVER cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice d) {
  *v = attribute(a);
  return 0;
}
DRIVER cuCtxGetCurrent(CUcontext* c) { *c = context; return 0; }
DRIVER cuCtxSetCurrent(CUcontext c) { context = c; return 0; }
DRIVER cuCtxGetDevice(CUdevice* d) { *d = device; return 0; }
DRIVER cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice d) {
  *c = (CUcontext)(long)(d + 1);
  return 0;
}
DRIVER cuDevicePrimaryCtxGetState(CUdevice d, unsigned* f, int* a) {
  *a = 1;
  return 0;
}
DRIVER cuModuleLoadData(CUmodule* m, const void* i) {
  *m = (CUmodule)malloc(8);
  return 0;
}
DRIVER cuModuleLoadDataEx(CUmodule* m, const void* i, unsigned n,
                          CUjit_option* o, void** v) {
  *m = (CUmodule)malloc(8);
  return 0;
}
DRIVER cuModuleLoad(CUmodule* m, const char* n) {
  *m = (CUmodule)malloc(8);
  return 0;
}
DRIVER cuModuleGetFunction(CUfunction* f, CUmodule m, const char* n) {
  *f = (CUfunction)malloc(8);
  return 0;
}
DRIVER cuModuleUnload(CUmodule m) { return 0; }
DRIVER cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  *v = a == 0 ? 1024 : a == 4 ? 32 : 0;
  return 0;
}
DRIVER cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  return 0;
}
DRIVER cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return 0; }
DRIVER cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                      unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      CUstream stream, void** parameters, void** extra) {
  if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
  if (gx * gy * gz == 0) return CUDA_ERROR_INVALID_VALUE;
  record(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared,
         stream, parameters);
  return 0;
}
DRIVER cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f,
                        void** parameters, void** extra) {
  return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ,
                        c->blockDimX, c->blockDimY, c->blockDimZ,
                        c->sharedMemBytes, c->hStream, parameters, extra);
}
DRIVER cuGetErrorString(CUresult r, const char** s) {
  *s = "an error of the fake";
  return 0;
}
DRIVER cuGetErrorName(CUresult r, const char** s) { *s = "FAKE"; return 0; }
DRIVER cuPointerGetAttribute(void* v, CUpointer_attribute a, CUdeviceptr p) {
  *(CUdeviceptr*)v = p;
  return 0;
}
DRIVER cuOccupancyMaxActiveClusters(int* n, CUfunction f,
                                    const CUlaunchConfig* c) {
  *n = 8;
  return 0;
}
DRIVER cuCtxGetLimit(size_t* v, CUlimit l) { *v = 0; return 0; }
DRIVER cuCtxSetLimit(CUlimit l, size_t v) { return 0; }
DRIVER cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) {
  const unsigned none[3] = {0, 0, 0};
  record(0, none, none, 0, s, NULL);
  if (recorded > 0) {
    Record* r = &records[recorded - 1];
    r->count = 2;
    r->parameters[0] = p;
    r->parameters[1] = 4 * n;
  }
  return 0;
}
