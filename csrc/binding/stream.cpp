#include "stream.h"

#include <dlfcn.h>

namespace cwkernels {
namespace {

// torch's own macro for this has another name in torch 2.10.
void check(const char* call, AOTITorchError error) {
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "cwkernels: ", call, " failed with error ", error);
}

// torch 2.13 made the handle of any stream part of the stable interface; before that there is the
// CUDA-only call.
constexpr const char* kAnyStream = "torch_stream_native_handle";
constexpr const char* kCudaStream = "aoti_torch_get_current_cuda_stream";

// A CPU-only torch exports neither name, so linking against one would make the whole library
// unloadable there: both are looked up where they are needed. torch is loaded without RTLD_GLOBAL,
// and its CUDA half is no dependency of ours: that is asked by its file's name.
void* symbol(const char* name) {
  if (void* found = dlsym(RTLD_DEFAULT, name)) return found;
  void* const cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (cuda == nullptr) return nullptr;
  void* const found = dlsym(cuda, name);
  dlclose(cuda);  // torch keeps it
  return found;
}

}  // namespace

void* current_stream(int32_t device_index) {
  using NativeHandle = AOTITorchError (*)(StreamHandle, void**);
  using CurrentCudaStream = AOTITorchError (*)(int32_t, void**);
  void* stream = nullptr;
  static const auto native = reinterpret_cast<NativeHandle>(symbol(kAnyStream));
  if (native != nullptr) {
    StreamHandle handle = nullptr;
    check("aoti_torch_get_current_stream", aoti_torch_get_current_stream(device_index, &handle));
    const torch::stable::accelerator::Stream owner(handle);
    check(kAnyStream, native(handle, &stream));
    return stream;
  }
  static const auto current = reinterpret_cast<CurrentCudaStream>(symbol(kCudaStream));
  STD_TORCH_CHECK(current != nullptr,
                  "cwkernels: this torch has no CUDA streams, but a CUDA tensor was given");
  check(kCudaStream, current(device_index, &stream));
  return stream;
}

GpuCall::GpuCall(const char* operation, const Tensor& on)
    : operation_(operation),
      guard_(on.get_device_index()),
      stream_(current_stream(on.get_device_index())) {}

void GpuCall::check(int error) const {
  STD_TORCH_CHECK(error == 0, operation_, ": the CUDA launch failed with cudaError ", error);
}

}  // namespace cwkernels
