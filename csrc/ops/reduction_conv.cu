#include "reduction_conv.cuh"

namespace cwkernels {
namespace {

// The scratch of two calls, one behind the other's.
struct BothScratch {
  CudaScratch conv, shortcut;

  int64_t offset() const { return (conv.bytes + 127) / 128 * 128; }
  CudaScratch all() const { return {offset() + shortcut.bytes, conv.tickets + shortcut.tickets}; }
  ReductionConvParams placed(ReductionConvParams p) const {
    p.conv.workspace = p.workspace;
    p.conv.tickets = p.tickets;
    p.shortcut.workspace = static_cast<char*>(p.workspace) + offset();
    p.shortcut.tickets = p.tickets + conv.tickets;
    return p;
  }
};

// --- Forward -------------------------------------------------------------------------------------

bool forward_is_tiled(const ReductionConvParams& p) {
  return conv_norm_is_tiled(p.conv) && conv_norm_is_tiled(p.shortcut);
}

// f(split) for both convolutions.
template <class F>
auto with_forward_split(const ReductionConvParams& p, const F& f) {
  return with_conv_norm_tile(make_conv_norm_tile(p.conv, false), f);
}

BothScratch forward_scratch(const ReductionConvParams& p) {
  if (!forward_is_tiled(p)) {
    return {conv_norm_cuda_scratch(p.conv), conv_norm_cuda_scratch(p.shortcut)};
  }
  return with_forward_split(p, [&](auto split) {
    using Split = decltype(split);
    const auto own = [](const ConvNormParams& of) {
      const ConvNormTile t = make_conv_norm_tile(of, false);
      return conv_norm_partials<Split, Moments<float>>(t).scratch(of.architectures *
                                                                  (t.outputs / Split::kOutputs));
    };
    return BothScratch{own(p.conv), own(p.shortcut)};
  });
}

template <class Precision, class Split>
int launch_forward(const ReductionConvParams& p, void* stream) {
  ReductionConvTile t{make_conv_norm_tile(p.conv, false), make_conv_norm_tile(p.shortcut, false),
                      0};
  share_out<Split, Moments<float>>(&t.conv);
  share_out<Split, Moments<float>>(&t.shortcut);
  t.conv_blocks = tile_blocks<Split>(t.conv);
  const size_t shared = max(conv_norm_shared<Split, Moments<float>>(t.conv),
                            conv_norm_shared<Split, Moments<float>>(t.shortcut));
  return launch(reduction_conv_tile<Precision, Split>,
                {t.conv_blocks + tile_blocks<Split>(t.shortcut), p.conv.architectures},
                Split::kThreads, shared, stream, t);
}

// --- Backward ------------------------------------------------------------------------------------

int64_t input_bytes(const ConvNormParams& p) {
  const int64_t size = p.double_precision ? 8 : p.bf16_images ? 2 : 4;
  return p.architectures * p.images * p.height * p.width * p.input_channels * size;
}

// f(split, pointwise) for the weights of both convolutions.
template <class F>
auto with_weight_splits(const ReductionConvParams& p, const F& f) {
  const bool wide = p.conv.input_channels % 32 == 0 && p.conv.output_channels % 32 == 0;
  return wide ? f(Weight32{}, Weight32Pointwise{}) : f(Weight16{}, Weight16Pointwise{});
}

template <class Split>
int64_t partial_bytes(const ConvNormParams& p) {
  return p.architectures * make_conv_norm_weight<Split>(p, nullptr).blocks * conv_norm_weights(p) *
         static_cast<int64_t>(sizeof(float));
}

bool backward_is_tiled(const ReductionConvParams& p) {
  if (!forward_is_tiled(p) || p.conv.architectures > kWeightSumMost) return false;
  return with_weight_splits(p, [&](auto split, auto pointwise) {
    return partial_bytes<decltype(split)>(p.conv) <= kWeightWorkspace &&
           partial_bytes<decltype(pointwise)>(p.shortcut) <= kWeightWorkspace;
  });
}

BothScratch backward_scratch(const ReductionConvParams& p) {
  if (!backward_is_tiled(p)) {
    return {conv_norm_backward_cuda_scratch(p.conv), conv_norm_backward_cuda_scratch(p.shortcut)};
  }
  return with_weight_splits(p, [&](auto split, auto pointwise) {
    return BothScratch{{partial_bytes<decltype(split)>(p.conv), 0},
                       {partial_bytes<decltype(pointwise)>(p.shortcut), 0}};
  });
}

template <class Precision>
int launch_weights(const ReductionConvParams& p, ReductionConvGradient* rest, void* stream) {
  return with_weight_splits(p, [&](auto split, auto pointwise) {
    using Split = decltype(split);
    using Pointwise = decltype(pointwise);
    ReductionConvWeight t{
        make_conv_norm_weight<Split>(p.conv, static_cast<float*>(p.conv.workspace)),
        make_conv_norm_weight<Pointwise>(p.shortcut, static_cast<float*>(p.shortcut.workspace)), 0};
    const int64_t outputs = p.conv.output_channels, inputs = p.conv.input_channels;
    t.conv_blocks = t.conv.blocks * weight_chunks<Split>(outputs, inputs);
    const int64_t blocks =
        t.conv_blocks + t.shortcut.blocks * weight_chunks<Pointwise>(outputs, inputs);
    rest->conv_sum = weight_sum_of(t.conv, p.conv.architectures);
    rest->shortcut_sum = weight_sum_of(t.shortcut, p.conv.architectures);
    return launch(reduction_conv_weight_tile<Precision, Split, Pointwise>,
                  {blocks, p.conv.architectures}, Split::kThreads,
                  max(weight_tile_shared<Split>(t.conv), weight_tile_shared<Pointwise>(t.shortcut)),
                  stream, t);
  });
}

// Tiles of the same pixels, of which each reads one.
ConvParts pointwise(ConvParts parts) {
  for (int i = 0; i < parts.count; ++i) {
    ConvPart& part = parts.parts[i];
    part.window = forward_window(1, 1);
    part.tiles.source_rows = part.tiles.rows;
    part.tiles.source_columns = part.tiles.columns;
  }
  return parts;
}

template <class Precision>
int launch_input_gradient(ReductionConvGradient t, void* stream) {
  return with_conv_norm_tile(t.conv, [&](auto split) {
    using Split = decltype(split);
    share_out<Split, Sums<float>>(&t.conv);
    t.tile_blocks = tile_blocks<Split>(t.conv);
    t.conv_sum_blocks = weight_sum_blocks(t.conv_sum);
    const int64_t blocks = t.tile_blocks + t.conv_sum_blocks + weight_sum_blocks(t.shortcut_sum);
    return launch(reduction_conv_gradient_tile<Precision, Split>, {blocks, t.conv.p.architectures},
                  Split::kThreads, conv_norm_shared<Split, Sums<float>>(t.conv), stream, t);
  });
}

template <class Precision>
int launch_backward(const ReductionConvParams& p, void* stream) {
  ReductionConvGradient t{};
  int error = launch_weights<Precision>(p, &t, stream);
  if (error != 0) return error;
  if (!p.conv.grad_input) {
    error = launch_weight_sum(t.conv_sum, stream);
    return error != 0 ? error : launch_weight_sum(t.shortcut_sum, stream);
  }
  t.conv = make_conv_norm_tile(p.conv, true);
  t.shortcut = make_conv_norm_tile(p.shortcut, true);
  t.shortcut.all = pointwise(t.conv.all);
  return launch_input_gradient<Precision>(t, stream);
}

// The shortcut's gradient of the input lies behind the scratch.
int backward_apart(ReductionConvParams p, int64_t scratch, void* stream) {
  const int64_t bytes = input_bytes(p.conv);
  if (p.conv.grad_input) {
    p.shortcut.grad_input = static_cast<char*>(p.workspace) + (scratch + 127) / 128 * 128;
  }
  int error = conv_norm_backward_cuda(p.conv, stream);
  if (error == 0) error = conv_norm_backward_cuda(p.shortcut, stream);
  if (error != 0 || !p.conv.grad_input) return error;
  return with_stored(p.conv, [&](auto of) {
    using Stored = typename decltype(of)::Type;
    const int64_t count = bytes / static_cast<int64_t>(sizeof(Stored));
    const ReductionConvAdd add{p.conv.grad_input, p.shortcut.grad_input, count};
    return launch(reduction_conv_add<Stored>, {(count + kConvNormThreads - 1) / kConvNormThreads},
                  kConvNormThreads, 0, stream, add);
  });
}

}  // namespace

CudaScratch reduction_conv_cuda_scratch(const ReductionConvParams& p) {
  return forward_scratch(p).all();
}

int reduction_conv_cuda(const ReductionConvParams& params, void* stream) {
  const ReductionConvParams p = forward_scratch(params).placed(params);
  if (!forward_is_tiled(p)) {
    const int error = conv_norm_cuda(p.conv, stream);
    return error != 0 ? error : conv_norm_cuda(p.shortcut, stream);
  }
  return with_precision(p.conv, [&](auto precision) {
    return with_forward_split(p, [&](auto split) {
      return launch_forward<decltype(precision), decltype(split)>(p, stream);
    });
  });
}

CudaScratch reduction_conv_backward_cuda_scratch(const ReductionConvParams& p) {
  CudaScratch all = backward_scratch(p).all();
  if (!backward_is_tiled(p) && p.conv.grad_input) {
    all.bytes = (all.bytes + 127) / 128 * 128 + input_bytes(p.conv);
  }
  return all;
}

int reduction_conv_backward_cuda(const ReductionConvParams& params, void* stream) {
  const BothScratch scratch = backward_scratch(params);
  const ReductionConvParams p = scratch.placed(params);
  if (!backward_is_tiled(p)) return backward_apart(p, scratch.all().bytes, stream);
  return with_precision(
      p.conv, [&](auto precision) { return launch_backward<decltype(precision)>(p, stream); });
}

}  // namespace cwkernels
