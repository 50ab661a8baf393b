// Functions that programs link against and the host device does not have: they say so once and return an
// error. Compiled once for each library, with LIBRARY_<name> defined.
#include "device.h"

#define UNSUPPORTED(name, status) \
    EXPORT int name() { return calm_host_device_unsupported(#name, status); }

#if defined(LIBRARY_cuda)
#define F(name) UNSUPPORTED(name, 801)
F(cuCtxCreate_v3) F(cuCtxGetCacheConfig) F(cuCtxGetLimit) F(cuCtxSetCacheConfig) F(cuCtxSetLimit)
F(cuDestroyExternalMemory) F(cuDeviceSetMemPool) F(cuExternalMemoryGetMappedBuffer)
F(cuGraphDestroy) F(cuGraphExecDestroy) F(cuGraphInstantiateWithFlags) F(cuGraphLaunch) F(cuGraphUpload)
F(cuImportExternalMemory) F(cuLaunchCooperativeKernel) F(cuLaunchKernelEx) F(cuMemAdvise_v2)
F(cuMemAllocManaged) F(cuMemPoolCreate) F(cuMemPoolDestroy) F(cuMemPrefetchAsync_v2) F(cuMemcpyPeerAsync)
F(cuModuleGetGlobal_v2) F(cuOccupancyMaxActiveClusters) F(cuOccupancyMaxPotentialBlockSizeWithFlags)
F(cuOccupancyMaxPotentialClusterSize) F(cuPointerGetAttribute) F(cuStreamAttachMemAsync)
F(cuStreamBeginCapture_v2) F(cuStreamEndCapture) F(cuStreamGetCaptureInfo_v2)
#elif defined(LIBRARY_cublas)
#define F(name) UNSUPPORTED(name, 15)
F(cublasSasum_v2) F(cublasDasum_v2) F(cublasSgemv_v2) F(cublasDgemv_v2) F(cublasGemmGroupedBatchedEx)
#elif defined(LIBRARY_cublasLt)
#define F(name) UNSUPPORTED(name, 15)
F(cublasLtCreate) F(cublasLtDestroy) F(cublasLtLoggerOpenFile) F(cublasLtLoggerSetLevel) F(cublasLtMatmul)
F(cublasLtMatmulAlgoGetHeuristic) F(cublasLtMatmulDescCreate) F(cublasLtMatmulDescDestroy)
F(cublasLtMatmulDescSetAttribute) F(cublasLtMatmulPreferenceCreate) F(cublasLtMatmulPreferenceDestroy)
F(cublasLtMatmulPreferenceSetAttribute) F(cublasLtMatrixLayoutCreate) F(cublasLtMatrixLayoutDestroy)
F(cublasLtMatrixLayoutSetAttribute)
#elif defined(LIBRARY_curand)
#define F(name) UNSUPPORTED(name, 999)
F(curandGenerate) F(curandGenerateLogNormal) F(curandGenerateLogNormalDouble) F(curandGenerateLongLong)
F(curandGeneratePoisson)
#elif defined(LIBRARY_nvrtc)
#define F(name) UNSUPPORTED(name, 11)
F(nvrtcCompileProgram) F(nvrtcCreateProgram) F(nvrtcDestroyProgram) F(nvrtcGetPTX) F(nvrtcGetPTXSize)
F(nvrtcGetProgramLog) F(nvrtcGetProgramLogSize)
#elif defined(LIBRARY_cudart)
#define F(name) UNSUPPORTED(name, 801)
F(cudaGetLastError) F(cudaStreamSynchronize)
#endif
