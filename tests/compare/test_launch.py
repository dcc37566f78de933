import os
import sys
from pathlib import Path

import pytest

from frn_mmdet.compare.launch import command, environment

TOOL, CONFIG, FOLDER = Path('tools/train.py'), Path('a.py'), Path('out/a')
CHECKPOINT = FOLDER / 'epoch_1.pth'


def words(gpus, launcher='pytorch', checkpoint=None):
    return command(TOOL, CONFIG, FOLDER, gpus, launcher, checkpoint)


@pytest.mark.parametrize('gpus', [0, 1])
def test_one_process(gpus):
    assert words(gpus) == [
        sys.executable, 'tools/train.py', 'a.py', '--work-dir', 'out/a']
    assert words(gpus, checkpoint=CHECKPOINT)[-2:] == [
        '--resume', 'out/a/epoch_1.pth']


def test_several_gpus():
    line = words(4)
    assert line[:5] == [
        sys.executable, '-m', 'torch.distributed.run', '--standalone',
        '--nproc_per_node=4']
    assert line[-2:] == ['--launcher', 'pytorch']


def test_slurm_starts_one_task_a_gpu():
    line = words(8, 'slurm', CHECKPOINT)
    assert line[:3] == ['srun', '--ntasks=8', '--gpus=8']
    assert line[-4:] == [
        '--resume', 'out/a/epoch_1.pth', '--launcher', 'slurm']
    ports = {environment(slot, 3, 8, 'slurm', {})['MASTER_PORT']
             for slot in range(3)}
    assert len(ports) == 3


def test_the_cpu_is_divided():
    cores = len(os.sched_getaffinity(0))
    for jobs in (1, 2, cores, 3 * cores):
        env = environment(0, jobs, 0, 'pytorch', {'HOME': '/root'})
        assert env['HOME'] == '/root'
        threads = int(env['OMP_NUM_THREADS'])
        assert 1 <= threads <= max(1, cores / jobs)
        assert 'CUDA_VISIBLE_DEVICES' not in env
    own = environment(0, 1, 0, 'pytorch', {'OMP_NUM_THREADS': '3'})
    assert own['OMP_NUM_THREADS'] == '3'


@pytest.mark.parametrize('visible, expected', [
    (None, ['0,1', '2,3']), ('4,5,6,7', ['4,5', '6,7'])])
def test_no_two_trainings_share_a_gpu(visible, expected):
    parent = {} if visible is None else {'CUDA_VISIBLE_DEVICES': visible}
    given = [environment(slot, 2, 2, 'pytorch', parent)[
        'CUDA_VISIBLE_DEVICES'] for slot in range(2)]
    assert given == expected
