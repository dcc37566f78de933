"""How one training is started."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

LAUNCHERS = ('pytorch', 'slurm')


def command(tool: Path, config: Path, folder: Path, gpus: int,
            launcher: str, checkpoint: Path | None) -> list[str]:
    """The command of a training.

    Args:
        tool (Path): ``tools/train.py``.
        config (Path): What it trains.
        folder (Path): Where it writes.
        gpus (int): 0 for the CPU, one process a GPU.
        launcher (str): One of :data:`LAUNCHERS`, for more than one GPU;
            slurm's for any number.
        checkpoint (Path or None): What to go on from.

    Returns:
        list[str]: Words.
    """
    train = [str(tool), str(config), '--work-dir', str(folder)]
    if checkpoint is not None:
        train += ['--resume', str(checkpoint)]
    if launcher == 'slurm':
        # Partition, nodes and time are the environment's: SLURM_PARTITION,
        # SBATCH_*, or an allocation that is there.
        return [
            'srun', f'--ntasks={gpus}', f'--gpus={gpus}',
            '--kill-on-bad-exit=1', sys.executable, *train, '--launcher',
            'slurm'
        ]
    if gpus > 1:
        return [
            sys.executable, '-m', 'torch.distributed.run', '--standalone',
            f'--nproc_per_node={gpus}', *train, '--launcher', 'pytorch'
        ]
    return [sys.executable, *train]


def environment(slot: int, jobs: int, gpus: int, launcher: str,
                parent: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a training: its share of this machine.

    Args:
        slot (int): Which of the trainings that run side by side, from 0.
        jobs (int): How many run side by side.
        gpus (int): Of each.
        launcher (str): One of :data:`LAUNCHERS`.
        parent (dict): The environment to start from.

    Returns:
        dict: A copy with threads (unless the parent's are set), GPUs and
        port set.
    """
    env = dict(parent)
    if launcher == 'slurm':
        # Of trainings on one node each needs a port of its own.
        env['MASTER_PORT'] = str(29500 + slot)
        return env
    threads = max(1, len(os.sched_getaffinity(0)) // (jobs * max(1, gpus)))
    env.setdefault('OMP_NUM_THREADS', str(threads))
    if gpus:
        visible = env.get('CUDA_VISIBLE_DEVICES')
        ids = (visible.split(',') if visible else
               [str(i) for i in range(jobs * gpus)])
        env['CUDA_VISIBLE_DEVICES'] = ','.join(
            ids[slot * gpus:(slot + 1) * gpus])
    return env
