"""What ATen's operations make of the map that a norm gave.

Names are ATen's, without the underscore of those in place; those of another
library have its name in front. An operation on none of the lists may be
anything, an activation too.
"""

# These give what they are given, if in another shape or a part of it.
SAME_VALUES = {
    '_reshape_alias', '_to_copy', '_unsafe_view', 'alias', 'as_strided',
    'clone', 'contiguous', 'detach', 'expand', 'lift_fresh', 'permute',
    'reshape', 'select', 'slice', 'split', 'split_with_sizes', 'squeeze', 't',
    'transpose', 'unbind', 'unsafe_split', 'unsqueeze', 'view'
}
# These look at the shape only.
NO_VALUES = {
    'empty_like', 'full_like', 'new_empty', 'new_empty_strided', 'new_full',
    'new_ones', 'new_zeros', 'ones_like', 'rand_like', 'randint_like',
    'randn_like', 'zeros_like'
}
# Behind these stands something new. A norm is among them as a function; as a
# module it gets a mark of its own.
NEW_VALUES = {
    'addbmm', 'addmm', 'addmv', 'baddbmm', 'batch_norm', 'bmm',
    '_cdist_forward', '_convolution', 'convolution', '_cudnn_rnn', 'dot',
    'embedding', '_euclidean_dist', 'frn_mmdet::frn', 'frn_mmdet::grouped',
    'linalg_vector_norm', 'linear', '_log_softmax', 'mkldnn_convolution',
    'mkldnn_rnn_layer', 'mm', 'mv', 'native_batch_norm',
    '_native_batch_norm_legit', '_native_batch_norm_legit_no_training',
    'native_group_norm',
    'native_layer_norm', '_native_multi_head_attention', 'norm',
    '_scaled_dot_product_cudnn_attention',
    '_scaled_dot_product_efficient_attention',
    '_scaled_dot_product_flash_attention',
    '_scaled_dot_product_flash_attention_for_cpu', '_softmax', 'std',
    'std_mean', '_thnn_fused_gru_cell', '_thnn_fused_lstm_cell',
    'torchvision::deform_conv2d', '_transformer_encoder_layer_fwd',
    '_trilinear', 'var', 'var_mean'
}
# Convolutions and products, and what a map of sums of theirs is made by.
PRODUCTS = {
    '_convolution', 'addbmm', 'addmm', 'baddbmm', 'bmm', 'convolution',
    'linear', 'mkldnn_convolution', 'mm'
}
SUMS = {
    '_adaptive_avg_pool2d', 'add', 'avg_pool2d', 'cat', 'constant_pad_nd',
    'div', 'max_pool2d_with_indices', 'mean', 'stack', 'sub', 'sum',
    'upsample_bilinear2d', 'upsample_nearest2d'
}
# These move, choose, weigh and add values, or raise them to a power as a
# norm does that is written by hand. None is 0 for all that is below a number.
MIXES = SUMS | {
    '_adaptive_avg_pool3d', 'adaptive_max_pool2d', 'adaptive_max_pool3d',
    'addcdiv', 'addcmul', 'amax', 'amin', 'aminmax', 'avg_pool1d',
    'avg_pool3d', 'channel_shuffle', 'col2im', 'complex', '_conj',
    '_conj_physical', 'conj_physical', 'copy', 'cummax', '_cummax_helper',
    'cummin', '_cummin_helper', 'cumsum', 'diag_embed', 'diagonal', '_fft_c2c',
    '_fft_c2r', '_fft_r2c', 'fill', 'flip', 'fractional_max_pool2d',
    'fractional_max_pool3d', 'gather', 'grid_sampler_2d', 'grid_sampler_3d',
    'im2col', 'index', 'index_add', 'index_copy', 'index_fill', 'index_put',
    '_index_put_impl', 'index_reduce', 'index_select', 'kthvalue', 'lerp',
    'logsumexp', 'masked_fill', 'masked_scatter', 'masked_select', 'max',
    'max_pool3d_with_indices', 'max_unpool2d', 'max_unpool3d', 'median', 'min',
    'mode', 'mul', 'nan_to_num', 'nanmedian', 'nansum',
    'native_channel_shuffle', 'native_dropout', 'neg', 'pixel_shuffle',
    'pixel_unshuffle', 'pow', 'reciprocal', 'reflection_pad1d',
    'reflection_pad2d', 'reflection_pad3d', 'repeat', 'replication_pad1d',
    'replication_pad2d', 'replication_pad3d', 'roll', 'rot90', 'rsqrt', 'rsub',
    'scatter', 'scatter_add', 'scatter_reduce', 'select_scatter',
    'slice_scatter', 'sort', 'sqrt', 'topk', 'torchvision::ps_roi_align',
    'torchvision::roi_align', 'trace', 'tril', 'triu', 'unfold',
    '_unsafe_index', '_unsafe_index_put', 'upsample_bicubic2d',
    '_upsample_bicubic2d_aa', '_upsample_bilinear2d_aa', 'upsample_linear1d',
    'upsample_nearest1d', 'upsample_nearest3d', '_upsample_nearest_exact1d',
    '_upsample_nearest_exact2d', '_upsample_nearest_exact3d',
    'upsample_trilinear3d', 'view_as_complex', 'view_as_real', 'where', 'zero'
}
# Places, counts, and whether values are equal: of a map that has been cut off
# at 0 they say no more than of any other.
FINDS = {
    'all', 'any', 'argmax', 'argmin', 'argsort', 'count_nonzero', 'eq', 'isin',
    'isinf', 'isnan', 'isneginf', 'isposinf', 'logical_not', 'ne', 'nonzero',
    '_unique2', 'unique_consecutive'
}
# These are 0, or near it, for whatever is below a number. A TLU in front of
# one is of no use, so none may be left behind a TLU, either.
CLIPS = {
    '_prelu_kernel', 'celu', 'clamp', 'clamp_min', 'elu', 'fmax', 'gelu',
    'hardswish', 'hardtanh', 'leaky_relu', 'maximum', 'mish', 'relu',
    'rrelu_with_noise', 'selu', 'silu', 'softplus', 'threshold'
}
# Comparisons, signs and absolute values make a ReLU by hand: x * (x > 0).
OTHER_ACTIVATIONS = {
    'abs', 'bucketize', 'clamp_max', 'copysign', 'erf', 'erfc', 'exp',
    'expm1', 'fmin', 'ge', 'glu', 'gt', 'hardshrink', 'hardsigmoid',
    'heaviside', 'hypot', 'le', 'log_sigmoid_forward', 'logaddexp',
    'logaddexp2', 'lt', 'minimum', 'sgn', 'sigmoid', 'sign', 'signbit',
    'softshrink', 'tanh'
}
# Of a map they are its activation; of the mean of one, a gate.
GATES = {'hardsigmoid', 'sigmoid', 'tanh'}
# These take a number out of a tensor, and the code may go on by it.
NUMBERS = {'_local_scalar_dense', 'equal'}

KNOWN = (SAME_VALUES | NO_VALUES | NEW_VALUES | MIXES | FINDS | CLIPS
         | OTHER_ACTIVATIONS | NUMBERS)


def name_of(operation) -> str:
    """The name, as the lists have it, of what ``__torch_dispatch__`` gets."""
    library, _, name = operation._schema.name.partition('::')
    name = name.removesuffix('_').removeprefix('_foreach_')
    return name if library == 'aten' else f'{library}::{name}'
