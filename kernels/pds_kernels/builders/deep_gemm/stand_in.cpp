// One GPU that is not there, for a process that asks DeepGEMM which kernels it would run.
//
// Preloaded, and named as the CUDA driver, so that DeepGEMM and torch find these calls before those
// of CUDA. Loading and launching a kernel does nothing but note which it was. No serving process
// loads this.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

struct Launched {
    std::string cubin;
    unsigned shared = 0, threads = 0;
};

std::map<void*, std::string> loaded;  // handle of a library → the file it came from
Launched last;

int asked(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr) std::abort();
    return std::atoi(value);
}

template <typename Handle>
Handle as(void* handle) {
    return reinterpret_cast<Handle>(handle);
}

}  // namespace

extern "C" {

// What is asked of us by the process itself.

const char* pds_last_cubin() { return last.cubin.c_str(); }
unsigned pds_last_shared() { return last.shared; }
unsigned pds_last_threads() { return last.threads; }
void pds_forget() { last = {}; }

// The runtime: one device.

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

// DeepGEMM's choice depends on nothing else of a device.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
    std::memset(found, 0, sizeof *found);
    const int capability = asked("PDS_STAND_IN_ARCH");
    found->major = capability / 10;
    found->minor = capability % 10;
    found->multiProcessorCount = asked("PDS_STAND_IN_SMS");
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
    std::memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeDevice;
    found->devicePointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = *greatest = 0, cudaSuccess;
}

// cuBLAS, of which DeepGEMM holds a handle.

int cublasLtCreate(void** handle) { return *handle = &last, 0; }
int cublasLtDestroy(void*) { return 0; }

// The driver: modules and launches.

CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadFromFile(CUlibrary* library, const char* file, CUjit_option*, void**,
                               unsigned, CUlibraryOption*, void**, unsigned) {
    static std::size_t handles = 0;
    void* handle = reinterpret_cast<void*>(++handles);
    loaded[handle] = file;
    return *library = as<CUlibrary>(handle), CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }
CUresult cuLibraryGetKernelCount(unsigned* count, CUlibrary) { return *count = 1, CUDA_SUCCESS; }

CUresult cuLibraryEnumerateKernels(CUkernel* kernels, unsigned, CUlibrary library) {
    return kernels[0] = as<CUkernel>(library), CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
    return *function = as<CUfunction>(kernel), CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void**, void**) {
    last = {loaded[function], config->sharedMemBytes, config->blockDimX};
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult, const char** text) { return *text = "", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "", CUDA_SUCCESS; }

}  // extern "C"
