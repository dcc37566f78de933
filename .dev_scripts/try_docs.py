"""Run the commands of the pages, as a reader would.

python .dev_scripts/try_docs.py [PAGE ...] [--work FOLDER] [--list]

Each ``bash`` block of README and docs/ is read; a command that needs COCO,
several GPUs, mim or the network is named and left out. The others run one
after another in a folder of their own, which looks like a clone beside the
reader's data: names such as CONFIG and CHECKPOINT stand for files that are
there. Exit status 1 if one fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```bash\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# Why a command is left out, by what stands in it.
LEFT_OUT = {
    r'^make ': 'builds an environment',
    r'^(CFLAGS=\S+ )?pip install': 'installs packages',
    r'^mim ': 'needs mim',
    r'_coco\.py|configs/paper|data/coco|COCO_ROOT': 'needs COCO',
    r'(?<!=)\b8\b(?! 4 2)': 'needs 8 GPUs',
    r'_in1k|imagenet': 'needs ImageNet',
    r'torchvision://': 'needs the network',
    r'benchmark_|check_zoo|study_': 'takes hours',
    r'check_gpu|--device cuda': 'needs a GPU',
}
# What stands for the reader's own files.
DEMO = 'configs/demo/retinanet_r18_fpn_frn_shapes.py'
BRIEF = ('--cfg-options train_cfg.max_epochs=1 '
         'model.test_cfg.score_thr=0.001')
NAMES = {
    r'norm_cfg=GN': 'norm_cfg.type=GN model.norm_cfg.num_groups=8',
    r'(?<=--norms )(.*)\bGN\b(?!:)': r'\1GN:num_groups=8',
    r'--seeds 3': '--seeds 1',
    r'--lr 0.02 0.04': '--lr 0.01',
    r'\bCONFIG\b': DEMO,
    r'\bCHECKPOINT\b': 'work_dirs/mine/epoch_1.pth',
    r'(?<!/)\bepoch_4\.pth\b': 'work_dirs/mine/epoch_1.pth',
    r'\bWORK_DIR\b': 'work_dirs/mine',
    r'FILE\.pkl': 'file.pkl',
    r'data/coco/val2017': 'shapes/val2017',
}


def main(argv=None):
    """Print a line a command; exit 1 if one failed."""
    args = parse_args(argv)
    failed = []
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        if not args.list:
            prepare(Path(folder))
        for page in args.pages or PAGES:
            for command in commands(page.read_text()):
                text, reason = read(command)
                if reason or args.list:
                    print(f'{page.name}: {text}\n    '
                          f'{f"left out: {reason}" if reason else "runs"}')
                elif not succeeds(page, text, folder):
                    failed.append(f'{page.name}: {text}')
    print(f'{len(failed)} failed', *failed, sep='\n')
    sys.exit(bool(failed))


def parse_args(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', metavar='PAGE', nargs='*', type=Path)
    parser.add_argument('--work', metavar='FOLDER', help='for what is written')
    parser.add_argument('--list', action='store_true', help='run nothing')
    return parser.parse_args(argv)


def commands(text):
    """Yield the commands of a page, each on one line."""
    for block in BLOCK.findall(text):
        for line in block.replace('\\\n', ' ').splitlines():
            line = re.sub(r'\s+#.*$', '', line).strip()
            if line and not line.startswith('#'):
                yield re.sub(r'\s+', ' ', line)


def read(command):
    """Return what is run in a command's place, and why it is not."""
    for name, file in NAMES.items():
        command = re.sub(name, file, command)
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, command):
            return command, reason
    return command, ''


def prepare(folder):
    """Make what a reader has: a clone, data, a config, a checkpoint."""
    for name in ('configs', 'tools', '.dev_scripts'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'my_config.py').write_text(f"_base_ = '{ROOT / DEMO}'\n")
    for command in (
            'python -m frn_mmdet make_shapes shapes --train 16 --val 8',
            f'python tools/train.py {DEMO} --work-dir work_dirs/mine {BRIEF}'):
        subprocess.run(command, shell=True, check=True, cwd=folder,
                       env=environment(folder), stdout=subprocess.DEVNULL)


def environment(folder):
    """Of the commands: this Python first, one thread."""
    return os.environ | dict(
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        SHAPES_ROOT=f'{folder}/shapes', OMP_NUM_THREADS='1')


def succeeds(page, command, folder):
    """Run a command and print how it went; variables stay for the next."""
    start = time.time()
    state = Path(folder, '.variables')
    run = subprocess.run(
        ['bash', '-c', f'set -a; [ -f {state} ] && . {state}; {command}\n'
         f'status=$?; declare -p T DEMO 2>/dev/null >{state}; exit $status'],
        cwd=folder, env=environment(folder), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = 'ok' if run.returncode == 0 else f'FAILED\n{run.stdout[-2000:]}'
    print(f'{page.name}: {command}\n    {said}, {time.time() - start:.0f} s',
          flush=True)
    return run.returncode == 0


if __name__ == '__main__':
    main()
