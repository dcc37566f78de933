"""The Triton kernels of FRN and TLU; ``cuda.py`` says what they share.

Arguments that all have: images and channels, N and C; groups * VECTOR, the
positions of a row; segment, positions of one of its segments, of which there
are splits. R and B: channels and positions of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def _number(words_ptr, rows, tiles, splits, WAY: tl.constexpr):
    """Of which tile and which segment a program is.

    Where programs meet, in the order in which they come on the GPU, which
    the last word counts: those of a row come together, and one that is there
    never waits for one that has no place.
    """
    if WAY == 'meet':
        last = words_ptr + rows * splits + tiles
        number = tl.atomic_add(last, 1, sem='relaxed').to(tl.int32)
    else:
        number = tl.program_id(0)
    return number // splits, number % splits


@triton.jit
def _rows(tile, split, images, channels, groups, segment, R: tl.constexpr,
          LAST: tl.constexpr, VECTOR: tl.constexpr):
    """Which rows a program is for, and where they lie in memory.

    Returns their channels, which of those exist, their numbers among all
    rows, where they start, the step between positions, the positions of a
    row, and the first and the end of this program's. The compiler cannot
    tell what divides the length of a row, and so whether loads may be wide,
    unless it sees the product.
    """
    size = groups * VECTOR
    blocks = tl.cdiv(channels, R)
    image = tile // blocks
    c = tile % blocks * R + tl.arange(0, R)
    start = image.to(tl.int64) * channels * size
    if LAST:
        start = start + c
        step = channels
    else:
        start = start + c.to(tl.int64) * size
        step = 1
    first = split * segment
    end = tl.minimum(first + segment, size)
    return (c, c < channels, image * channels + c, start, step, size, first,
            end)


@triton.jit
def _inverse_root(value, ACC: tl.constexpr):
    """1 / sqrt(value), rounded as PyTorch does; Triton's own are faster."""
    if ACC == tl.float32:
        inv = tl.div_rn(1., tl.sqrt_rn(value))
    else:
        inv = 1. / tl.sqrt(value)
    return inv


@triton.jit
def _uniform(value):
    """The same, one number as a scalar.

    A tensor lies in the registers of certain threads, and Triton 3.6 brings
    it to others only after it was broadcast to a whole tile.
    """
    if value.shape[0] == 1:
        value = tl.zeros((1, ), value.dtype) + tl.sum(value, 0)
    return value


@triton.jit
def _exchange(words_ptr, value, tile, split, splits, row, live, rows,
              SEGMENTS: tl.constexpr):
    """The sum over all segments of a row, each from its program.

    A segment's word is 0 until it is a float32 with a bit above it. It comes
    whole, so nothing has to be put in order, which takes longer than all the
    rest. The tile's word counts those that came; one thread asks for it.
    """
    bits = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    first = words_ptr + row.to(tl.int64) * splits
    tl.store(first + split, bits | 0x100000000, live)
    arrived = words_ptr + rows * splits + tile
    count = tl.atomic_add(arrived, 1, sem='relaxed') + 1
    while count < splits:
        count = tl.atomic_add(arrived, 0, sem='relaxed')
    segment = tl.arange(0, SEGMENTS)
    where = first[:, None] + segment[None, :]
    mask = (segment < splits)[None, :] & live[:, None]
    words = tl.load(where, mask, other=0x100000000, volatile=True)
    while tl.min(tl.min(words, 1), 0) < 0x100000000:
        words = tl.load(where, mask, other=0x100000000, volatile=True)
    values = (words & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
    return _uniform(tl.sum(values, 1))


@triton.jit
def _add_up(sums_ptr, row, live, rows, splits, SEGMENTS: tl.constexpr):
    """The sums over all segments, which other programs stored."""
    segment = tl.arange(0, SEGMENTS)
    mask = (segment < splits)[None, :] & live[:, None]
    parts = tl.load(sums_ptr + segment[None, :] * rows + row[:, None], mask,
                    other=0.)
    return _uniform(tl.sum(parts, 1))


@triton.jit
def _load(ptr, start, live, at, end, step, ACC: tl.constexpr):
    """A tile of a map, and 0 beyond its ends."""
    where = start[:, None] + at.to(tl.int64)[None, :] * step
    mask = live[:, None] & (at < end)[None, :]
    return tl.load(ptr + where, mask, other=0.).to(ACC)


@triton.jit
def _mean(mean_ptr, c, live, MEAN: tl.constexpr, ACC: tl.constexpr):
    """What is subtracted from the rows; 0 if nothing is."""
    if MEAN:
        mean = tl.load(mean_ptr + c, live, other=0.).to(ACC)
    else:
        mean = tl.zeros(c.shape, ACC)
    return mean


@triton.jit
def _load_centred(ptr, mean, start, live, at, end, step, MEAN: tl.constexpr,
                  ACC: tl.constexpr):
    """A tile of x - mean, and 0 beyond its ends."""
    x = _load(ptr, start, live, at, end, step, ACC)
    if MEAN:
        mask = live[:, None] & (at < end)[None, :]
        x = tl.where(mask, x - mean[:, None], 0.)
    return x


@triton.jit
def _store(ptr, value, start, live, at, end, step):
    where = start[:, None] + at.to(tl.int64)[None, :] * step
    mask = live[:, None] & (at < end)[None, :]
    tl.store(ptr + where, value.to(ptr.dtype.element_ty), mask)


@triton.jit
def _affine(x, scale, bias):
    """Equation (2), rounded alike wherever it is computed."""
    return tl.fma(x, tl.broadcast_to(scale[:, None], x.shape),
                  tl.broadcast_to(bias[:, None], x.shape))


@triton.jit
def _activated(x, scale, bias, tau, TLU: tl.constexpr):
    """Equations (2) and (3)."""
    y = _affine(x, scale, bias)
    if TLU:
        tau = tau[:, None]
        # NaN if tau is, as torch.maximum; backward takes it as not clipped.
        y = tl.where((y < tau) | (tau != tau), tau, y)
    return y


@triton.jit
def _passed(grad, x, scale, bias, tau, TLU: tl.constexpr):
    """The gradient where y was kept, and where tau took its place."""
    if TLU:
        below = _affine(x, scale, bias) < tau[:, None]
        passed = tl.where(below, 0., grad)
        stopped = tl.where(below, grad, 0.)
    else:
        passed = grad
        stopped = tl.zeros_like(grad)
    return passed, stopped


@triton.jit
def _squares(x_ptr, mean, start, live, first, end, step, R: tl.constexpr,
             B: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr):
    """Sums of squares of rows, from ``first`` to ``end``."""
    total = tl.zeros((R, B), ACC)
    for begin in range(first, end, B):
        at = begin + tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN, ACC)
        total += x * x
    return tl.sum(total, 1)


@triton.jit
def _dots(grad_ptr, x_ptr, mean, start, live, first, end, step, scale, bias,
          tau, R: tl.constexpr, B: tl.constexpr, TLU: tl.constexpr,
          MEAN: tl.constexpr, ACC: tl.constexpr):
    """<dy, x> and the sum of dy where y was kept, the latter where not."""
    dot = tl.zeros((R, B), ACC)
    kept = tl.zeros((R, B), ACC)
    cut = tl.zeros((R, B), ACC)
    for begin in range(first, end, B):
        at = begin + tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN, ACC)
        grad = _load(grad_ptr, start, live, at, end, step, ACC)
        passed, stopped = _passed(grad, x, scale, bias, tau, TLU)
        dot += passed * x
        kept += passed
        cut += stopped
    return tl.sum(dot, 1), tl.sum(kept, 1), tl.sum(cut, 1)


@triton.jit
def _parameters(weight_ptr, bias_ptr, tau_ptr, c, live, TLU: tl.constexpr,
                ACC: tl.constexpr):
    """weight, bias and tau of channels; without a TLU tau is not read."""
    weight = tl.load(weight_ptr + c, live, other=0.).to(ACC)
    bias = tl.load(bias_ptr + c, live, other=0.).to(ACC)
    tau = bias
    if TLU:
        tau = tl.load(tau_ptr + c, live, other=0.).to(ACC)
    return weight, bias, tau


@triton.jit
def _channels(inv_ptr, weight_ptr, bias_ptr, tau_ptr, row, c, live,
              TLU: tl.constexpr, ACC: tl.constexpr):
    """inv, scale, bias and tau, as backward needs them."""
    weight, bias, tau = _parameters(weight_ptr, bias_ptr, tau_ptr, c, live,
                                    TLU, ACC)
    inv = tl.load(inv_ptr + row, live, other=0.)
    return inv, inv * weight, bias, tau


@triton.jit
def forward_sums(x_ptr, mean_ptr, sums_ptr, images, channels, groups,
                 segment, splits, R: tl.constexpr, B: tl.constexpr,
                 WAY: tl.constexpr, SEGMENTS: tl.constexpr,
                 LAST: tl.constexpr, VECTOR: tl.constexpr,
                 TLU: tl.constexpr, EPS: tl.constexpr, MEAN: tl.constexpr,
                 ACC: tl.constexpr):
    """Sums of squares of a segment, to (splits, N, C)."""
    tile, split = _number(x_ptr, 0, 0, splits, WAY)
    c, live, row, start, step, size, first, end = _rows(
        tile, split, images, channels, groups, segment, R, LAST, VECTOR)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    total = _squares(x_ptr, mean, start, live, first, end, step, R, B, MEAN,
                     ACC)
    tl.store(sums_ptr + split * images * channels + row, total, live)


@triton.jit
def forward(x_ptr, weight_ptr, bias_ptr, tau_ptr, eps_ptr, eps, mean_ptr,
            share, sums_ptr, words_ptr, y_ptr, inv_ptr, images, channels,
            groups, segment, splits, R: tl.constexpr, B: tl.constexpr,
            WAY: tl.constexpr, SEGMENTS: tl.constexpr, LAST: tl.constexpr,
            VECTOR: tl.constexpr, TLU: tl.constexpr, EPS: tl.constexpr,
            MEAN: tl.constexpr, ACC: tl.constexpr):
    """Equations (1) to (3)."""
    tile, split = _number(words_ptr, images * channels,
                          images * tl.cdiv(channels, R), splits, WAY)
    c, live, row, start, step, size, first, end = _rows(
        tile, split, images, channels, groups, segment, R, LAST, VECTOR)
    rows = images * channels
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    if EPS == 0:
        shift = tl.zeros((R, ), ACC) + eps
    elif EPS == 1:
        shift = tl.zeros((R, ), ACC) + tl.load(eps_ptr).to(ACC) * eps
    else:
        shift = tl.load(eps_ptr + c, live, other=1.).to(ACC) * eps
    weight, bias, tau = _parameters(weight_ptr, bias_ptr, tau_ptr, c, live,
                                    TLU, ACC)

    if WAY != 'split':
        at = first + tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN, ACC)
        total = tl.sum(x * x, 1)
    if WAY == 'meet':
        total = _exchange(words_ptr, total, tile, split, splits, row, live,
                          rows, SEGMENTS)
    elif WAY == 'split':
        total = _add_up(sums_ptr, row, live, rows, splits, SEGMENTS)

    inv = _inverse_root(total / size * share + shift, ACC)
    if split == 0:  # stores to one place wait for each other
        tl.store(inv_ptr + row, inv, live)
    scale = inv * weight

    if WAY != 'split':
        y = _activated(x, scale, bias, tau, TLU)
        _store(y_ptr, y, start, live, at, end, step)
    else:
        for begin in range(first, end, B):
            at = begin + tl.arange(0, B)
            x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN,
                              ACC)
            y = _activated(x, scale, bias, tau, TLU)
            _store(y_ptr, y, start, live, at, end, step)


@triton.jit
def _store_sums(sums_ptr, dot, kept, cut, split, row, live, rows, splits):
    """To (3, splits, N, C)."""
    to = sums_ptr + split * rows + row
    tl.store(to, dot, live)
    tl.store(to + splits * rows, kept, live)
    tl.store(to + 2 * splits * rows, cut, live)


@triton.jit
def backward_sums(grad_ptr, x_ptr, inv_ptr, weight_ptr, bias_ptr, tau_ptr,
                  mean_ptr, sums_ptr, images, channels, groups, segment,
                  splits, R: tl.constexpr, B: tl.constexpr,
                  WAY: tl.constexpr, SEGMENTS: tl.constexpr,
                  LAST: tl.constexpr, VECTOR: tl.constexpr,
                  TLU: tl.constexpr, EPS: tl.constexpr, MEAN: tl.constexpr,
                  ACC: tl.constexpr):
    """The three sums of a segment, to (3, splits, N, C)."""
    tile, split = _number(x_ptr, 0, 0, splits, WAY)
    c, live, row, start, step, size, first, end = _rows(
        tile, split, images, channels, groups, segment, R, LAST, VECTOR)
    inv, scale, bias, tau = _channels(inv_ptr, weight_ptr, bias_ptr, tau_ptr,
                                      row, c, live, TLU, ACC)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    dot, kept, cut = _dots(grad_ptr, x_ptr, mean, start, live, first, end,
                           step, scale, bias, tau, R, B, TLU, MEAN, ACC)
    _store_sums(sums_ptr, dot, kept, cut, split, row, live, images * channels,
                splits)


@triton.jit
def backward(grad_ptr, x_ptr, inv_ptr, weight_ptr, bias_ptr, tau_ptr,
             mean_ptr, sums_ptr, words_ptr, share, dx_ptr, images,
             channels, groups, segment, splits, R: tl.constexpr,
             B: tl.constexpr, WAY: tl.constexpr, SEGMENTS: tl.constexpr,
             LAST: tl.constexpr, VECTOR: tl.constexpr, TLU: tl.constexpr,
             EPS: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr):
    """Section 3.2: dx = inv * (I - x_hat x_hat^T / N) dx_hat.

    Also writes the three sums, unless ``backward_sums`` has.
    """
    tile, split = _number(words_ptr, images * channels,
                          images * tl.cdiv(channels, R), splits, WAY)
    c, live, row, start, step, size, first, end = _rows(
        tile, split, images, channels, groups, segment, R, LAST, VECTOR)
    rows = images * channels
    inv, scale, bias, tau = _channels(inv_ptr, weight_ptr, bias_ptr, tau_ptr,
                                      row, c, live, TLU, ACC)
    mean = _mean(mean_ptr, c, live, MEAN, ACC)
    if WAY != 'split':
        at = first + tl.arange(0, B)
        x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN, ACC)
        grad = _load(grad_ptr, start, live, at, end, step, ACC)
        passed, stopped = _passed(grad, x, scale, bias, tau, TLU)
        dot = tl.sum(passed * x, 1)
        kept = tl.sum(passed, 1)
        cut = tl.sum(stopped, 1)
        _store_sums(sums_ptr, dot, kept, cut, split, row, live, rows, splits)
    if WAY == 'meet':
        dot = _exchange(words_ptr, dot, tile, split, splits, row, live, rows,
                        SEGMENTS)
    elif WAY == 'split':
        dot = _add_up(sums_ptr, row, live, rows, splits, SEGMENTS)

    pull = scale * inv * inv * (dot / size) * share
    if WAY != 'split':
        dx = passed * scale[:, None] - x * pull[:, None]
        _store(dx_ptr, dx, start, live, at, end, step)
    else:
        for begin in range(first, end, B):
            at = begin + tl.arange(0, B)
            x = _load_centred(x_ptr, mean, start, live, at, end, step, MEAN,
                              ACC)
            grad = _load(grad_ptr, start, live, at, end, step, ACC)
            passed, stopped = _passed(grad, x, scale, bias, tau, TLU)
            dx = passed * scale[:, None] - x * pull[:, None]
            _store(dx_ptr, dx, start, live, at, end, step)


@triton.jit
def join(sums_ptr, inv_ptr, weight_ptr, dweight_ptr, dbias_ptr, dtau_ptr,
         deps_ptr, images, channels, splits, ACC: tl.constexpr,
         T: tl.constexpr, ROWS: tl.constexpr):
    """Parameter gradients: the sums over segments and images."""
    c = tl.program_id(0) * T + tl.arange(0, T)
    live = c < channels
    many = splits * images
    dweight = tl.zeros((ROWS, T), ACC)
    dbias = tl.zeros((ROWS, T), ACC)
    dtau = tl.zeros((ROWS, T), ACC)
    deps = tl.zeros((ROWS, T), ACC)
    weight = tl.load(weight_ptr + c, live, other=0.).to(ACC)
    for begin in range(0, many, ROWS):
        of = begin + tl.arange(0, ROWS)
        mask = (of < many)[:, None] & live[None, :]
        row = (of % images)[:, None] * channels + c[None, :]
        at = of[:, None] * channels + c[None, :]
        inv = tl.load(inv_ptr + row, mask, other=0.)
        dot = tl.load(sums_ptr + at, mask, other=0.) * inv
        dweight += dot
        deps += -0.5 * dot * weight[None, :] * inv * inv
        at += many * channels
        dbias += tl.load(sums_ptr + at, mask, other=0.)
        at += many * channels
        dtau += tl.load(sums_ptr + at, mask, other=0.)
    tl.store(dweight_ptr + c, tl.sum(dweight, 0), live)
    tl.store(dbias_ptr + c, tl.sum(dbias, 0), live)
    tl.store(dtau_ptr + c, tl.sum(dtau, 0), live)
    tl.store(deps_ptr + c, tl.sum(deps, 0), live)


@triton.jit
def _units(units, length, R: tl.constexpr, B: tl.constexpr):
    """Which elements a program is for, where they are, which exist."""
    unit = tl.program_id(0) * R + tl.arange(0, R)
    at = tl.program_id(1) * B + tl.arange(0, B)
    where = unit.to(tl.int64)[:, None] * length + at[None, :]
    return unit, at, where, (unit < units)[:, None] & (at < length)[None, :]


@triton.jit
def _bytes(bits_ptr, unit, units, length, R: tl.constexpr, B: tl.constexpr):
    """Where the bits of the same elements are, and which exist."""
    count = tl.cdiv(length, 8)
    at = tl.program_id(1) * (B // 8) + tl.arange(0, B // 8)
    where = bits_ptr + unit.to(tl.int64)[:, None] * count + at[None, :]
    return where, (unit < units)[:, None] & (at < count)[None, :]


@triton.jit
def tlu(x_ptr, tau_ptr, z_ptr, bits_ptr, units, length, channels,
        R: tl.constexpr, B: tl.constexpr, LAST: tl.constexpr,
        ACC: tl.constexpr):
    """Equation (3), and a bit for every element, set where it was below."""
    unit, at, where, mask = _units(units, length, R, B)
    x = tl.load(x_ptr + where, mask, other=0.)
    if LAST:
        tau = tl.load(tau_ptr + at, at < length, other=0.)[None, :]
    else:
        tau = tl.load(tau_ptr + unit % channels, unit < units,
                      other=0.)[:, None]
    limit = tau.to(ACC)
    below = (x.to(ACC) < limit) & mask
    z = tl.where(below | (limit != limit), tau, x)
    tl.store(z_ptr + where, z, mask)
    eight = tl.reshape(below.to(tl.int32), (R, B // 8, 8))
    byte = tl.sum(eight << tl.arange(0, 8)[None, None, :], 2)
    to, live = _bytes(bits_ptr, unit, units, length, R, B)
    tl.store(to, byte.to(tl.uint8), live)


@triton.jit
def tlu_backward(grad_ptr, bits_ptr, dx_ptr, sums_ptr, units, length,
                 R: tl.constexpr, B: tl.constexpr, LAST: tl.constexpr,
                 ACC: tl.constexpr):
    """The gradient of x, and of tau the sums over a tile."""
    unit, at, where, mask = _units(units, length, R, B)
    grad = tl.load(grad_ptr + where, mask, other=0.)
    of, live = _bytes(bits_ptr, unit, units, length, R, B)
    byte = tl.load(of, live, other=0).to(tl.int32)
    eight = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    below = tl.reshape(eight, (R, B)) != 0
    tl.store(dx_ptr + where, tl.where(below, 0., grad), mask)
    stopped = tl.where(below, grad, 0.).to(ACC)
    if LAST:
        tl.store(sums_ptr + tl.program_id(0) * length + at,
                 tl.sum(stopped, 0), at < length)
    else:
        tl.store(sums_ptr + unit * tl.num_programs(1) + tl.program_id(1),
                 tl.sum(stopped, 1), unit < units)


@triton.jit
def tlu_join(sums_ptr, dtau_ptr, parts, channels, pieces, ACC: tl.constexpr,
             T: tl.constexpr, ROWS: tl.constexpr):
    """The gradient of tau: sums of (parts, channels, pieces) over all else."""
    c = tl.program_id(0) * T + tl.arange(0, T)
    live = c < channels
    many = parts * pieces
    total = tl.zeros((ROWS, T), ACC)
    for begin in range(0, many, ROWS):
        of = begin + tl.arange(0, ROWS)
        mask = (of < many)[:, None] & live[None, :]
        part = (of // pieces)[:, None].to(tl.int64)
        at = (part * channels + c[None, :]) * pieces + (of % pieces)[:, None]
        total += tl.load(sums_ptr + at, mask, other=0.)
    dtau = tl.sum(total, 0)
    tl.store(dtau_ptr + c, dtau.to(dtau_ptr.dtype.element_ty), live)
