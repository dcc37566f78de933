"""Time FRN with TLU against BN and GN with ReLU, and against a copy.

python .dev_scripts/benchmark_norm.py [--shapes 2x64x200x336 ...] ...

Forward is that of a test (no gradients, BN with its running averages);
training is forward and backward. The floor is x.clone() and its backward,
which copy and do nothing else. All methods of a shape run in turn. On a GPU
these are times of the GPU, whose queue is never empty; how long the calls of a
training step keep the CPU is the column host.
"""

import argparse
import importlib.util
import sys

import measure
import torch
from torch import nn
from torch.nn import functional

from frn_mmdet import FRN, use_kernel
from frn_mmdet.ops.definition import frn_definition
from frn_mmdet.utils.markdown import table

# Of an image pair at 400 x 672 on a CPU, 800 x 1344 on a GPU: stem or C2,
# C3, C4 or C5; then P7 and the box RoIs, where overhead is what counts.
SHAPES = dict(
    cpu=['2x64x200x336', '2x256x100x168', '2x512x25x42', '2x256x7x11'],
    cuda=['2x64x400x672', '2x256x200x336', '2x512x100x168', '2x1024x50x84',
          '512x256x7x7', '1x256x7x11'])
FLOOR = 'x.clone()'
NAMES = ('FRN+TLU', 'FRN+TLU from BN', 'BN+ReLU', 'GN+ReLU', 'plain',
         'definition, compiled', 'rms_norm', 'timm', FLOOR)
# (colour, hatch): told apart without colours, too.
STYLES = {
    'FRN+TLU': ('#0060a0', ''),
    'FRN+TLU from BN': ('#0060a0', '--'),
    'GN+ReLU': ('#707070', ''),
    'plain': ('#80b8e0', '//'),
    'definition, compiled': ('#e0a060', '..'),
    'rms_norm': ('#b04a00', 'xx'),
    'timm': ('#60a060', '\\\\'),
    FLOOR: ('#ffffff', ''),
}


def main(argv=None):
    """Measure, print, and write what was asked for."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    about = measure.machine(args.device)
    rows = []
    for dtype in args.dtypes:
        for shape in args.shapes:
            print(f'{shape} {dtype}', file=sys.stderr)
            rows += measure_shape(shape, dtype, args)
    for dtype in args.dtypes:
        for shape in args.shapes:
            print(f'\n{shape}, {dtype}, {args.layout}\n')
            print(report(rows, shape, dtype))
    print('\n' + ', '.join(f'{k} {v}' for k, v in about.items()))
    if args.json:
        measure.write(args.json, machine=about, rows=rows)
    if args.plot:
        plot(rows, about, args.plot)


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        '--shapes', nargs='+', metavar='NxCxHxW', help='shapes of the map')
    parser.add_argument(
        '--dtypes', nargs='+', default=['float32'],
        choices=['float32', 'bfloat16', 'float16', 'float64'])
    parser.add_argument(
        '--layout', default='contiguous',
        choices=['contiguous', 'channels_last'])
    parser.add_argument(
        '--methods', nargs='+', choices=NAMES, default=None,
        help='all that are installed, if left out')
    measure.add_arguments(parser, 5., 'each shape and dtype')
    parser.add_argument('--plot', type=measure.file_to_write, metavar='FILE')
    args = parser.parse_args(argv)
    args.shapes = args.shapes or SHAPES[args.device.type]
    if 'timm' in (args.methods or ()) and not has_timm():
        parser.error('--methods timm: it is not installed')
    if args.plot and args.plot.suffix not in ('.png', '.pdf', '.svg'):
        parser.error(f'--plot {args.plot}: expected a name that ends in '
                     '.png, .pdf or .svg')
    if args.plot and args.methods and 'BN+ReLU' not in args.methods:
        parser.error('--plot shows times relative to BN+ReLU, which '
                     '--methods leaves out')
    for shape in args.shapes:
        sizes = shape.split('x')
        if len(sizes) != 4 or not all(n.isdecimal() and int(n) > 0
                                      for n in sizes) or int(sizes[1]) % 32:
            parser.error(f'--shapes {shape}: expected NxCxHxW with whole '
                         'numbers from 1 up, C divisible by 32 (for GN)')
    return args


def has_timm():
    """Whether timm can be compared with."""
    return importlib.util.find_spec('timm') is not None


def measure_shape(shape, dtype, args):
    """Return a row for each method."""
    sizes = [int(n) for n in shape.split('x')]
    layout = (torch.channels_last if args.layout == 'channels_last'
              else torch.contiguous_format)
    make = dict(dtype=getattr(torch, dtype), device=args.device)
    x = torch.randn(sizes, **make).to(memory_format=layout)
    grad = torch.randn(sizes, **make).to(memory_format=layout)
    x.requires_grad_()
    methods, parameters = build(sizes[1], x.dtype, args)

    def train(layer):
        def step():
            x.grad = None
            layer(x).backward(grad)
        return step

    def test(layer):
        def step():
            with torch.no_grad():
                layer(x)
        return step

    training = {name: train(layer) for name, layer in methods.items()}
    gpu = args.device.type == 'cuda'
    prepare = None
    if gpu:
        prepare = measure.keep_busy(args.device)
    elif x.nbytes > 2**25:  # what glibc always asks the system for
        prepare = measure.release_pages
    how = dict(device=args.device, seconds=args.seconds, prepare=prepare)
    both = measure.interleave(training, **how)
    host = measure.host_milliseconds(training, args.device) if gpu else {}
    saved = {name: measure.saved_bytes(lambda layer=layer: layer(x),
                                       parameters)
             for name, layer in methods.items()}
    peak = {}
    for name, step in training.items():
        x.grad = None  # or its memory would be this step's to reuse
        peak[name] = measure.peak_bytes(step, args.device)
    x.grad = None
    for layer in methods.values():
        if isinstance(layer, nn.Module):
            layer.eval()
    forward = measure.interleave(
        {name: test(layer) for name, layer in methods.items()},
        **how)
    if gpu:
        copy = copy_milliseconds(x.detach(), how)
    return [
        dict(shape=shape, dtype=dtype, layout=args.layout, method=name,
             forward_ms=forward[name], training_ms=both[name],
             host_ms=host.get(name), saved=saved[name] / x.nbytes,
             peak=peak[name] / x.nbytes,
             bandwidth=5 / both[name] / (2 / copy) if gpu else None)
        for name in methods
    ]


def build(channels, dtype, args):
    """Return the methods by name, functions of x, and their parameters."""
    def layer(norm):
        return norm.to(args.device)

    def activated(norm):
        return layer(nn.Sequential(norm, nn.ReLU(inplace=True)))

    frn, plain = (layer(FRN(channels, tlu=True)) for _ in range(2))
    weight, bias, tau = (p.detach().clone().requires_grad_()
                         for p in frn.parameters())
    torch.compiler.reset()
    compiled = torch.compile(frn_definition, dynamic=False)

    def run_plain(x):
        with use_kernel('plain'):
            return plain(x)

    def run_rms_norm(x):
        column = (1, -1, 1, 1)
        size = x.shape[2] * x.shape[3]
        y = functional.rms_norm(x.flatten(2), (size, ), eps=1e-6)
        y = torch.addcmul(bias.view(column), y.view_as(x),
                          weight.view(column))
        return torch.maximum(y, tau.view(column)).to(x.dtype)

    methods = {
        'FRN+TLU': frn,
        'FRN+TLU from BN': layer(FRN(channels, tlu=True, share=1 / 11)),
        'BN+ReLU': activated(nn.BatchNorm2d(channels)),
        'GN+ReLU': activated(group_norm(channels, dtype)),
        'plain': run_plain,
        'definition, compiled': lambda x: compiled(x, weight, bias, tau),
        'rms_norm': run_rms_norm,
        FLOOR: lambda x: x.clone(),
    }
    if has_timm():
        from timm.layers import FilterResponseNormTlu2d
        methods['timm'] = layer(FilterResponseNormTlu2d(channels))
    chosen = args.methods or NAMES
    chosen = {name: methods[name] for name in NAMES
              if name in chosen and name in methods}
    layers = [m for m in methods.values() if isinstance(m, nn.Module)]
    parameters = [weight, bias, tau, *plain.parameters(),
                  *(p for layer in layers for p in layer.parameters()),
                  *(b for layer in layers for b in layer.buffers())]
    return chosen, parameters


def group_norm(channels, dtype):
    """GN, which on a GPU takes no parameters of another dtype than the map."""
    return nn.GroupNorm(32, channels, dtype=dtype)


def copy_milliseconds(x, how):
    """Return what a copy of a map takes on a GPU, which moves it twice.

    The least that training moves is it five times: x is read twice, the
    gradient once, y and the gradient of x are written. On a CPU most of the
    time of a large map goes into fresh pages, which a copy between old
    tensors needs none of.
    """
    out = torch.empty_like(x)
    return measure.interleave({'': lambda: out.copy_(x)}, **how)['']


def report(rows, shape, dtype):
    """Return the table of a shape, times also as ratios."""
    rows = [r for r in rows if (r['shape'], r['dtype']) == (shape, dtype)]
    of = {row['method']: row for row in rows}
    columns = {
        'forward ms': lambda r: number(r['forward_ms']),
        'training ms': lambda r: number(r['training_ms']),
    }
    for name in ('BN+ReLU', 'GN+ReLU', FLOOR):
        if name in of:
            columns[f'/ {name}'] = lambda r, base=of[name]: (
                f'{r["forward_ms"] / base["forward_ms"]:.2f}, '
                f'{r["training_ms"] / base["training_ms"]:.2f}')
    columns['saved / x'] = lambda r: f'{r["saved"]:.2f}'
    columns['peak / x'] = lambda r: f'{r["peak"]:.2f}'
    if rows[0]['bandwidth'] is not None:
        columns['of copy rate'] = lambda r: f'{r["bandwidth"]:.0%}'
        columns['host ms'] = lambda r: number(r['host_ms'])
    return table(
        [dict(method=r['method'],
              **{name: f(r) for name, f in columns.items()}) for r in rows],
        ['method', *columns])


def number(value):
    """Three digits."""
    return f'{value:.3g}'


def plot(rows, about, path):
    """Draw training times relative to BN+ReLU, a panel for each dtype."""
    import matplotlib
    matplotlib.use('Agg')  # no display is needed
    import matplotlib.pyplot as plt
    dtypes = list(dict.fromkeys(r['dtype'] for r in rows))
    shapes = list(dict.fromkeys(r['shape'] for r in rows))
    figure, axes = plt.subplots(
        len(dtypes), 1, sharex=True, squeeze=False, layout='constrained',
        figsize=(2 + 2 * len(shapes), 1 + 2.6 * len(dtypes)))
    for axis, dtype in zip(axes[:, 0], dtypes, strict=True):
        plot_dtype(axis, [r for r in rows if r['dtype'] == dtype], shapes)
        axis.set_title(dtype, loc='left', fontsize=10)
        axis.set_ylabel('forward and backward,\nBN+ReLU = 1', fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8,
                  ncols=len(STYLES), loc='outside lower center')
    figure.suptitle(f'{about.get("GPU", about["CPU"])}, {about["threads"]} '
                    f'threads, torch {about["torch"]}, {about["date"]}',
                    fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_dtype(axis, rows, shapes):
    """Draw a panel: bars up are slower than BN+ReLU, bars down faster."""
    names = [n for n in NAMES if n != 'BN+ReLU'
             and any(r['method'] == n for r in rows)]
    time = {(r['shape'], r['method']): r['training_ms'] for r in rows}
    width = .85 / len(names)
    for i, name in enumerate(names):
        color, hatch = STYLES[name]
        ratios = [time[s, name] / time[s, 'BN+ReLU'] for s in shapes]
        at = [j + (i - (len(names) - 1) / 2) * width
              for j in range(len(shapes))]
        axis.bar(at, [r - 1 for r in ratios], width, bottom=1, label=name,
                 color=color, hatch=hatch, edgecolor='#303030', linewidth=.6)
        for x, ratio in zip(at, ratios, strict=True):
            axis.annotate(
                f'{ratio:.2g}', (x, ratio), (0, 2 if ratio > 1 else -2),
                textcoords='offset points', fontsize=7, ha='center',
                va='bottom' if ratio > 1 else 'top')
    axis.axhline(1, color='#303030', linewidth=.8)
    axis.set_yscale('log')
    axis.margins(y=.25)
    axis.set_xticks(range(len(shapes)), shapes)
    axis.yaxis.set_major_formatter('{x:g}')
    axis.spines[['top', 'right']].set_visible(False)


if __name__ == '__main__':
    main()
