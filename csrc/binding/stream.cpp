#include "stream.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

namespace cwkernels {

// A CPU-only torch exports neither name, so linking against one would make the whole library
// unloadable there: both are looked up where they are needed. torch 2.13 made the handle of any
// stream part of the stable interface; before that there is the CUDA-only call.
void* current_stream(int32_t device_index) {
  using NativeHandle = AOTITorchError (*)(StreamHandle, void**);
  using CurrentCudaStream = AOTITorchError (*)(int32_t, void**);
  void* stream = nullptr;
  if (auto native =
          reinterpret_cast<NativeHandle>(dlsym(RTLD_DEFAULT, "torch_stream_native_handle"))) {
    StreamHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_stream(device_index, &handle));
    const torch::stable::accelerator::Stream owner(handle);
    STABLE_TORCH_ERROR_CODE_CHECK(native(handle, &stream));
    return stream;
  }
  auto current = reinterpret_cast<CurrentCudaStream>(
      dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  STD_TORCH_CHECK(current != nullptr,
                  "cwkernels: this torch has no CUDA streams, but a CUDA tensor was given");
  STABLE_TORCH_ERROR_CODE_CHECK(current(device_index, &stream));
  return stream;
}

}  // namespace cwkernels
